import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import sqnr


def by_hand(reference, candidate):
    signal = sum(value**2 for value in reference)
    noise = sum((a - b) ** 2 for a, b in zip(reference, candidate, strict=True))
    return 10 * math.log10(signal / noise)


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_equals_the_sums_by_hand_and_knows_no_scale(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(2, 4, 3, generator=generator)
    candidate = reference + 0.1 * torch.randn(2, 4, 3, generator=generator)
    expected = [by_hand(a.flatten().tolist(), b.flatten().tolist()) for a, b in zip(reference, candidate, strict=True)]
    assert sqnr.sqnr_db(reference, candidate).tolist() == pytest.approx(expected, rel=1e-4)
    assert sqnr.sqnr_db(scale * reference, scale * candidate).tolist() == pytest.approx(expected, rel=1e-3)


def test_half_of_the_amplitude_is_6_db_and_zeros_are_minus_infinity():
    reference = torch.ones(1, 8)
    assert sqnr.sqnr_db(reference, 0.5 * reference).item() == pytest.approx(6.0206, abs=1e-4)
    assert sqnr.sqnr_db(reference, 0 * reference).item() == pytest.approx(0.0)
    assert sqnr.sqnr_db(0 * reference, reference).item() == -math.inf
    assert sqnr.sqnr_db(0 * reference, 0 * reference).item() == math.inf


def test_eight_bits_of_a_full_scale_sine_have_the_textbook_figure():
    """6.02 b + 1.76 dB for a sine of full range rounded to b bits."""
    sine = torch.sin(torch.linspace(0, 2000.123, 200_000, dtype=torch.float64))[None]
    rounded = (sine * 128).round() / 128
    assert sqnr.sqnr_db(sine, rounded).item() == pytest.approx(6.02 * 8 + 1.76, abs=0.15)
