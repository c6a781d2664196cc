"""Three sets of the same pictures, measured: candidate and reference to the ground truth, and to each other.

A picture that cannot be measured (NaN, a wrong range, a flat colour, a wrong size) has the value NaN and a text that
says what it looks like; it is never an exception, and a gate never passes it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from eval import metrics as registry
from eval.errors import EvalError
from eval.metrics import _images

Of = Literal["candidate", "reference"]
Against = Literal["ground_truth", "reference"]
PAIRS: tuple[tuple[Of, Against], ...] = (
    ("candidate", "ground_truth"),
    ("reference", "ground_truth"),
    ("candidate", "reference"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """An image metric and, where it needs one, its net."""

    name: str
    net: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric of one pair of image sets: a value per image, in the order of the images."""

    metric: str
    net: str | None
    unit: str
    higher_is_better: bool
    of: Of
    against: Against
    values: tuple[float, ...]
    problem: str | None = None  # what the images behind NaN values look like


def compare(
    *,
    ground_truth: Tensor,
    reference: Tensor,
    candidate: Tensor,
    metrics: Sequence[Metric],
    pairs: Sequence[tuple[Of, Against]] = PAIRS,
) -> tuple[Measurement, ...]:
    """Measure one batch; `joined` puts batches together.

    Args:
        ground_truth: Photographs [n, 3, h, w] in [0, 1].
        reference: What the reference made of them, same shape.
        candidate: What the candidate made of them, same shape.
        metrics: What to measure.
        pairs: What of what against what; each gives one measurement per metric.

    Raises:
        EvalError: the photographs themselves are no images in [0, 1], or a metric or its weights are missing.
    """
    _images.check_pair(ground_truth, ground_truth)
    sets = {"ground_truth": ground_truth, "reference": reference, "candidate": candidate}
    problems = {name: _problems(images, ground_truth) for name, images in sets.items()}
    return tuple(
        _measured(metric, of, against, sets=sets, problems=problems) for metric in metrics for of, against in pairs
    )


def joined(batches: Iterable[Sequence[Measurement]]) -> tuple[Measurement, ...]:
    """The measurements of several batches as one, in the order of the batches.

    Raises:
        EvalError: the batches were not measured alike.
    """
    whole: list[Measurement] = []
    for index, batch in enumerate(batches):
        if index == 0:
            whole = list(batch)
        elif [_identity(one) for one in batch] != [_identity(one) for one in whole]:
            raise EvalError(f"batch {index} was measured by other metrics than batch 0")
        else:
            whole = [_appended(one, more) for one, more in zip(whole, batch, strict=True)]
    return tuple(whole)


def to_json(measurement: Measurement) -> dict[str, Any]:
    """A record for a JSON line: +inf as {"value": null, "exact": true}, NaN the same with false."""
    record: dict[str, Any] = {field.name: getattr(measurement, field.name) for field in fields(measurement)}
    record["values"] = [
        value if math.isfinite(value) else {"value": None, "exact": value == math.inf} for value in measurement.values
    ]
    return record


def from_json(record: Mapping[str, Any]) -> Measurement:
    """What `to_json` wrote.

    Raises:
        EvalError: the record is not of that form.
    """
    known = {field.name for field in fields(Measurement)}
    if set(record) != known:
        raise EvalError(f"not a measurement: keys {sorted(set(record) ^ known)} are missing or unknown")
    values = tuple(_number(value) for value in record["values"])
    return Measurement(**{**record, "values": values})


def _number(value: float | Mapping[str, Any]) -> float:
    if isinstance(value, Mapping):
        return math.inf if value.get("exact") is True else math.nan
    return float(value)


def _identity(measurement: Measurement) -> Measurement:
    return replace(measurement, values=(), problem=None)


def _appended(one: Measurement, more: Measurement) -> Measurement:
    texts = dict.fromkeys(text for text in (one.problem, more.problem) if text)
    return replace(one, values=one.values + more.values, problem="; ".join(texts) or None)


def _problems(images: Tensor, truth: Tensor) -> list[str | None]:
    """What is wrong with each image, None where nothing is."""
    if images.shape != truth.shape:
        return [f"shape {list(images.shape)} where {list(truth.shape)} is expected"] * len(truth)
    return [_problem(image, original) for image, original in zip(images, truth, strict=True)]


def _problem(image: Tensor, original: Tensor) -> str | None:
    found = _images.describe_values(image)
    if found is None and _flat(image) and not _flat(original):
        colour = ", ".join(f"{value:.3g}" for value in image[:, 0, 0].tolist())
        return f"a constant image (every pixel is {colour}) of an original that has detail"
    return found


def _flat(image: Tensor) -> bool:
    return bool((image.amax((1, 2)) == image.amin((1, 2))).all())


def _measured(
    metric: Metric, of: Of, against: Against, *, sets: Mapping[str, Tensor], problems: Mapping[str, list[str | None]]
) -> Measurement:
    module = registry.get(metric.name)
    if not registry.is_image_metric(metric.name):
        raise EvalError(f"{metric.name} does not compare images; it is measured by eval.metrics.{metric.name}")
    bad = {name: [text for text in problems[name] if text] for name in (of, against)}
    usable = [i for i, pair in enumerate(zip(problems[of], problems[against], strict=True)) if pair == (None, None)]
    values = [math.nan] * len(problems[of])
    if usable:
        device = sets["ground_truth"].device
        index = torch.tensor(usable)
        first, second = (sets[name][index.to(sets[name].device)].to(device) for name in (against, of))
        for i, value in zip(usable, module.measure(first, second, net=metric.net).tolist(), strict=True):
            values[i] = value
    texts = [f"{name} has {found[0]} ({len(found)} of {len(values)} images)" for name, found in bad.items() if found]
    return Measurement(
        metric=metric.name,
        net=metric.net,
        unit=module.UNIT,
        higher_is_better=module.HIGHER_IS_BETTER,
        of=of,
        against=against,
        values=tuple(values),
        problem="; ".join(texts) or None,
    )
