"""Numbers as text: examples written by hand, and laws that read the text back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report import figures


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2_071_234, "parameters", "2.07 M"),
        (12.3e9, "MACs", "12.3 G"),
        (412_338, "bytes", "403 KiB"),
        (1_048_576, "bytes", "1.00 MiB"),
        (100, "bytes", "100 B"),
        (0, "parameters", "0"),
        (27.926, "dB", "27.93 dB"),
        (-0.001, "dB", "0.00 dB"),
        (-0.5, "dB", "\u22120.50 dB"),
        (16.94, "ms", "16.9 ms"),
        (0.0854, "", "0.0854"),
        (None, "dB", "not measured"),
        (math.nan, "bytes", "NaN"),
        (math.inf, "dB", "∞"),
        (-math.inf, "dB", "\u2212∞"),
    ],
)
def test_quantity(value: float | None, unit: str, text: str) -> None:
    assert figures.quantity(value, unit) == text


@pytest.mark.parametrize(
    ("reference", "variant", "unit", "text"),
    [
        (200, 50, "bytes", "\u221275.0 %"),
        (50, 200, "ms", "+300.0 %"),
        (27.93, 27.62, "dB", "\u22120.31 dB"),
        (0.08, 0.0854, "", "+0.0054"),
        (0, 5, "ms", ""),
        (None, 5, "ms", ""),
        (math.nan, 5, "dB", ""),
    ],
)
def test_change(reference: float | None, variant: float | None, unit: str, text: str) -> None:
    assert figures.change(reference, variant, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.44, "0.4 s"),
        (38.2, "38 s"),
        (59.7, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7805, "2 h 10 min"),
        (None, "not measured"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert figures.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (4.0, "4"), (0.5, "0.5000"), (math.nan, "NaN"), (12_345, "12,345")]
)
def test_amount(value: float, text: str) -> None:
    assert figures.amount(value) == text


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_number_reads_back_to_four_digits(value: float) -> None:
    read = float(figures.number(value).replace("\u2212", "-").replace(",", ""))
    assert read == pytest.approx(value, rel=1e-3)


@given(st.integers(0, 10**13))
def test_exact_keeps_every_digit(value: int) -> None:
    assert int(figures.exact(value).replace(",", "")) == value
