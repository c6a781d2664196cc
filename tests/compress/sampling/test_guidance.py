import numpy as np
import pytest
import torch

from compress.sampling.guidance import guided

RNG = np.random.default_rng(0)
WITH, WITHOUT = RNG.standard_normal((2, 3, 4, 5, 5))


def test_scale_1_is_the_text_alone_and_0_no_text():
    np.testing.assert_allclose(guided(WITH, WITHOUT, 1.0), WITH)
    np.testing.assert_allclose(guided(WITH, WITHOUT, 0.0), WITHOUT)


def test_each_number_moves_away_from_the_unconditional():
    found = guided(WITH, WITHOUT, 3.0)
    assert found[1, 2, 3, 4] == pytest.approx(3 * WITH[1, 2, 3, 4] - 2 * WITHOUT[1, 2, 3, 4])


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_rescaled_has_the_deviation_of_the_text_alone(make):
    found = np.asarray(guided(make(WITH), make(WITHOUT), 7.5, rescale=1.0))
    for picture in range(3):
        assert found[picture].std() == pytest.approx(WITH[picture].std())
    between = np.asarray(guided(make(WITH), make(WITHOUT), 7.5, rescale=0.5))
    np.testing.assert_allclose(between, (found + guided(WITH, WITHOUT, 7.5)) / 2)
