import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics import psnr

shapes = st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 12), st.integers(1, 12))


def by_loop(reference, candidate, peak=1.0):
    """PSNR of one image, one value at a time."""
    errors = [(a - b) ** 2 for a, b in zip(reference.flatten().tolist(), candidate.flatten().tolist(), strict=True)]
    return 10 * math.log10(peak**2 / (math.fsum(errors) / len(errors)))


@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**31))
def test_equals_a_loop_and_is_symmetric(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    found = psnr.psnr_db(a, b)
    assert found.tolist() == pytest.approx([by_loop(x, y) for x, y in zip(a, b, strict=True)], rel=1e-6)
    assert torch.equal(found, psnr.psnr_db(b, a))


def test_known_values():
    black = torch.zeros(1, 3, 4, 4)
    assert psnr.psnr_db(black, black + 0.1).item() == pytest.approx(20.0, abs=1e-5)
    assert psnr.psnr_db(black, black + 1).item() == 0.0
    assert psnr.psnr_db(black, black + 25.5, peak=255.0).item() == pytest.approx(20.0, abs=1e-5)
    assert psnr.psnr_db(black, black).item() == math.inf


def test_the_smallest_possible_difference_is_finite():
    images = torch.full((1, 3, 64, 64), 0.5)
    other = images.clone()
    other[0, 0, 0, 0] += 2**-24
    assert 150 < psnr.psnr_db(images, other).item() < math.inf


def test_falls_with_noise(photographs, noisy):
    images = photographs(2)
    values = torch.stack([psnr.measure(images, noisy(images, sigma)) for sigma in (0.01, 0.03, 0.1, 0.3)])
    assert (values.diff(dim=0) < 0).all()
