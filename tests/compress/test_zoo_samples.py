"""A sample run again is held to the limits it has, and one without limits proves nothing."""

import math

import pytest
import torch

from compress.zoo_samples import Limits, difference


def limits(**given: float) -> Limits:
    return Limits(*(given.get(name) for name in Limits._fields))


def test_sqnr_does_not_care_about_the_range() -> None:
    expected = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    found = expected * (1 + 10 ** (-50 / 20))  # 50 dB below the signal
    for scale in (1e-3, 1.0, 1e4):
        assert difference(scale * found, scale * expected, limits(min_sqnr_db=49.9)) == ""
        assert "SQNR in dB 50 (at least 50.1)" in difference(scale * found, scale * expected, limits(min_sqnr_db=50.1))


@pytest.mark.parametrize("limit", [{"min_sqnr_db": 0.0}, {"min_psnr_db": 0.0}, {"max_difference": 1e9}])
def test_nan_is_never_reproduced(limit: dict[str, float]) -> None:
    expected = torch.ones(1, 3)
    assert difference(torch.full((1, 3), math.nan), expected, limits(**limit))
    assert difference(expected, expected, limits(**limit)) == ""


def test_another_shape_and_no_limit_are_named() -> None:
    assert "gives (1, 2), not (1, 3)" in difference(torch.ones(1, 2), torch.ones(1, 3), limits(min_sqnr_db=1.0))
    assert "no limit" in difference(torch.ones(1, 3), torch.ones(1, 3), limits())
    assert difference(torch.ones(1, 3), torch.zeros(1, 3), limits(min_sqnr_db=0.0))
