"""Which zoo entries may be compared: measured on the same inputs by the same definition, and, for latency, on one host.

Works on the facts of a card, which say so (`conditions`); what they do not say is not assumed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVALUATED = "evaluation_sha256"  # the fact that says on which inputs an entry was measured
TIMING = ("latency_host", "latency_runtime")
_WORDS = {EVALUATED: "inputs", "latency_host": "host", "latency_runtime": "runtime"}

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """One metric that may stand for quality; more is better."""

    metric: str
    against: str
    words: str  # as an axis is called
    short: str
    unit: str

    @property
    def mean(self) -> str:
        """The fact that holds its mean."""
        return f"{self.metric}_mean"

    @property
    def definition(self) -> str:
        """The fact that says how it was taken."""
        return f"{self.metric}_definition"


QUALITIES = (  # the first that was measured is taken
    Quality(metric="psnr", against="ground_truth", words="PSNR to ground truth, dB", short="PSNR", unit="dB"),
    Quality(metric="sqnr", against="reference", words="SQNR to the uncompressed model, dB", short="SQNR", unit="dB"),
    Quality(
        metric="psnr_to_reference",
        against="reference",
        words="PSNR to the uncompressed model's pictures, dB",
        short="PSNR to uncompressed",
        unit="dB",
    ),
    Quality(metric="cosine", against="reference", words="Cosine to the uncompressed model", short="Cosine", unit=""),
)


def quality_of(facts: Facts) -> Quality | None:
    """What stands for the quality of an entry; None where nothing does."""
    return next((quality for quality in QUALITIES if number(facts.get(quality.mean)) is not None), None)


def number(value: object) -> float | None:
    """A fact as a finite number, None where it is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def differing(wanted: Mapping[str, str], facts: Facts) -> str:
    """Why an entry may not be compared with what these facts say; "" where all are the same."""
    found = []
    for key, value in wanted.items():
        word = _WORDS.get(key, "definition")
        if key not in facts:
            found.append(f"its card names no {word}")
        elif facts[key] != value:
            found.append(f"measured on other {word}" if word == "inputs" else f"measured with another {word}")
    return "; ".join(found)
