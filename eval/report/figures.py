"""Numbers as people read them: fixed digits, SI and binary scales, a true minus sign, NaN and None said in words.

The same number always gives the same text, whatever the locale.
"""

import math
from collections.abc import Iterable

NOT_MEASURED = "not measured"
MINUS = "\u2212"  # as wide as a plus, unlike the hyphen
_SI = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_DECIMALS = {"dB": 2, "%": 1, "": 4}


def number(value: float | None, decimals: int | None = None) -> str:
    """Write `value` with so many decimals, or with four significant digits where none are given."""
    if value is None:
        return NOT_MEASURED
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if decimals is None:
        return _significant(value, 4)
    return _signed(f"{value:,.{decimals}f}")


def quantity(value: float | None, unit: str) -> str:
    """Write `value` with its unit: 2.07 M, 312 KiB, 27.31 dB, 0.4210."""
    if value is None or not math.isfinite(value):
        return number(value)
    if unit in ("parameters", "MACs", "bytes"):
        divisor, suffix = scale((value,), unit)
        text = _significant(value / divisor, 3) if divisor != 1 else exact(value)
        return f"{text} {suffix}".rstrip()
    text = number(value, _DECIMALS[unit]) if unit in _DECIMALS else _significant(value, 3)
    return f"{text} {unit}".rstrip()


def amount(value: float | None) -> str:
    """Write a whole number whole, anything else with four significant digits."""
    if value is None or not math.isfinite(value) or not float(value).is_integer():
        return number(value)
    return exact(value)


def exact(value: float | None) -> str:
    """Write every digit of a count: 2,071,234."""
    if value is None or not math.isfinite(value):
        return number(value)
    return _signed(f"{value:,.0f}") if float(value).is_integer() else _signed(f"{value:,}")


def change(reference: float | None, variant: float | None, unit: str = "") -> str:
    """Say how the variant differs: a difference for dB and bare scores, per cent for everything else; "" if unknown."""
    if reference is None or variant is None or not (math.isfinite(reference) and math.isfinite(variant)):
        return ""
    if unit in ("dB", ""):
        return f"{plus(number(variant - reference, 2 if unit else 4))} {unit}".rstrip()
    if reference == 0:
        return ""
    return f"{plus(number(100 * (variant / reference - 1), 1))} %"


def plus(text: str) -> str:
    """Put a plus sign before a number that has no minus."""
    return text if text.startswith(MINUS) else f"+{text}"


def scale(values: Iterable[float | None], unit: str) -> tuple[float, str]:
    """Choose one divisor and its suffix for a whole column, from its largest value: (1e6, "M"), (1024, "KiB")."""
    largest = max((abs(v) for v in values if v is not None and math.isfinite(v)), default=0.0)
    table = _BINARY if unit == "bytes" else _SI
    for divisor, suffix in table:
        if largest >= divisor:
            return divisor, suffix
    return 1.0, "B" if unit == "bytes" else ""


def seconds(value: float | None) -> str:
    """Write a duration: 0.4 s, 38 s, 4 min 05 s, 2 h 10 min."""
    if value is None or not math.isfinite(value):
        return number(value)
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if power < -5:
        return _signed(f"{value:.{digits - 1}e}")
    return _signed(f"{value:,.{max(0, digits - 1 - power)}f}")


def _signed(text: str) -> str:
    if not text.startswith("-"):
        return text
    return text[1:] if not text.strip("-0.,") else MINUS + text[1:]
