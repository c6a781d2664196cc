"""The lowest SQNR on the way of each picture, against the definition step by step."""

import math

import numpy as np
import pytest
import torch

from eval.errors import EvalError
from eval.metrics import latent_sqnr


def test_it_is_the_lowest_of_the_steps_of_each_picture() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((3, 4, 2, 5, 5))
    candidate = reference + rng.standard_normal(reference.shape) * rng.uniform(0.01, 0.3, (3, 4, 1, 1, 1))
    expected = [
        min(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()) for a, b in zip(x, y, strict=True))
        for x, y in zip(reference, candidate, strict=True)
    ]
    found = latent_sqnr.measure(torch.from_numpy(reference), torch.from_numpy(candidate))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_one_step_that_is_off_counts_and_none_gives_infinity() -> None:
    reference = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    candidate = reference.clone()
    candidate[1, 1] *= 1.1  # 20 dB
    assert latent_sqnr.measure(reference, candidate).tolist() == [math.inf, pytest.approx(20.0, abs=1e-3)]


def test_latents_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EvalError, match="NaN"):
        latent_sqnr.measure(torch.ones(2, 3, 1, 4, 4), torch.full((2, 3, 1, 4, 4), torch.nan))
