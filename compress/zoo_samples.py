"""A sample of a zoo entry, run again: how far what came out may be from what is kept."""

import math
from typing import Any, NamedTuple

import torch


class Limits(NamedTuple):
    """What another machine is held to; None is not judged."""

    max_difference: float | None  # of pictures, in image units
    min_psnr_db: float | None  # of pictures
    min_sqnr_db: float | None  # of tensors whose range is their own


def limits_of(sample: Any) -> Limits:
    """The limits of a sample, of a run or of a card."""
    return Limits(*(getattr(sample, name) for name in Limits._fields))


def difference(found: torch.Tensor, expected: torch.Tensor, limits: Limits) -> str:
    """Why the two are not the same; "" where they are within all limits."""
    if found.shape != expected.shape:
        return f"gives {tuple(found.shape)}, not {tuple(expected.shape)}"
    apart = (found.double() - expected.double()).abs()
    noise, signal = float(apart.square().mean()), float(expected.double().square().mean())
    seen = (
        ("largest difference", float(apart.max()), "at most", limits.max_difference),
        ("PSNR in dB", _decibel(1.0, noise), "at least", limits.min_psnr_db),
        ("SQNR in dB", _decibel(signal, noise), "at least", limits.min_sqnr_db),
    )
    judged = [(name, value, word, limit) for name, value, word, limit in seen if limit is not None]
    if not judged:
        return "cannot be checked: its sample has no limit"
    # comparisons with NaN are false
    if all(value <= limit if word == "at most" else value >= limit for _, value, word, limit in judged):
        return ""
    texts = [f"{name} {value:.4g} ({word} {limit:.4g})" for name, value, word, limit in judged]
    return f"does not reproduce it: {', '.join(texts)}"


def _decibel(signal: float, noise: float) -> float:
    """Their ratio; noise that is NaN stays NaN, and noise without a signal is minus infinity."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
