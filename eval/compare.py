"""Three sets of the same pictures, measured: candidate and reference to the ground truth, and to each other.

A picture that cannot be measured (NaN, a wrong range, a flat colour, a wrong size) has the value NaN and a text that
says what it looks like; it is never an exception, and a gate never passes it. One that can be measured but looks
shifted, mirrored, swapped or the like has its value and the text (see eval.diagnosis).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from eval import diagnosis
from eval import metrics as registry
from eval.errors import EvalError
from eval.metrics import _images, _tensors

Of = Literal["candidate", "reference"]
Against = Literal["ground_truth", "reference"]
PAIRS: tuple[tuple[Of, Against], ...] = (
    ("candidate", "ground_truth"),
    ("reference", "ground_truth"),
    ("candidate", "reference"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of pictures or tensors and, where it needs one, its net."""

    name: str
    net: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One metric of one pair of sets: a value per image (or other sample), in the order of the images."""

    metric: str
    net: str | None
    unit: str
    higher_is_better: bool
    of: Of
    against: Against
    values: tuple[float, ...]
    problems: tuple[str | None, ...] = ()  # per image: what it looks like where it is not as it should be
    definition: str = ""  # of the metric; numbers of two definitions are not compared
    net_digest: str | None = None  # SHA-256 of the net's weights

    @property
    def problem(self) -> str | None:
        """The kinds of problem, each with an example and the number of images; None where there is none."""
        kinds: dict[str, list[str]] = {}
        for text in self.problems:
            if text:
                kinds.setdefault(re.sub(r"[-+]?\d[\d.]*", "", text), []).append(text)
        counted = [f"{texts[0]} ({len(texts)} of {len(self.problems)} images)" for texts in kinds.values()]
        return "; ".join(counted) or None

    @property
    def broken(self) -> int:
        """Images with a problem, or without a number."""
        problems = self.problems or (None,) * len(self.values)
        return sum(text is not None or math.isnan(v) for text, v in zip(problems, self.values, strict=True))


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
    unusable = {name: _unusable(images, ground_truth) for name, images in sets.items()}
    looks: dict[str, list[str | None]] = {
        "ground_truth": [None] * len(ground_truth),
        "reference": _looks(ground_truth, reference, unusable["reference"]),
    }
    sound = all(text is None for text in (*unusable["reference"], *looks["reference"]))
    looks["candidate"] = _looks(reference if sound else ground_truth, candidate, unusable["candidate"])
    return tuple(
        _measured(metric, of, against, sets=sets, unusable=unusable, looks=looks)
        for metric in metrics
        for of, against in pairs
    )


def compare_tensors(reference: Tensor, candidate: Tensor, metrics: Sequence[Metric]) -> tuple[Measurement, ...]:
    """Measure one batch of latents, embeddings or the like: the candidate against the reference.

    Args:
        reference: What the reference made of the inputs [n, ...].
        candidate: What the candidate made of the same.
        metrics: What to measure.

    Raises:
        EvalError: a metric compares no tensors, or the reference itself is not finite.
    """
    _tensors.check_pair(reference, reference)
    for metric in metrics:
        if registry.takes(metric.name) not in ("tensors", "latents"):
            raise EvalError(f"{metric.name} does not compare tensors; those that do: {', '.join(tensor_metrics())}")
    alike = candidate.shape == reference.shape
    texts = (
        [_tensors.describe(one) for one in candidate] if alike else [_misshapen(reference, candidate)] * len(reference)
    )
    return _all_measured(reference, candidate, metrics, texts)


def compare_drawn(reference: Tensor, candidate: Tensor, metrics: Sequence[Metric]) -> tuple[Measurement, ...]:
    """Measure pictures that two models drew of the same prompts: the candidate's against the reference's.

    They may differ in anything, and look like each other's neighbours; only a flat picture, or none, is broken.

    Args:
        reference: Pictures [n, 3, h, w] in [0, 1].
        candidate: Pictures, same shape.
        metrics: Of images.
    """
    detail = torch.linspace(0, 1, reference[0].numel()).view_as(reference[0])
    theirs = [diagnosis.broken(detail, one) for one in reference]
    alike = candidate.shape == reference.shape
    mine = (
        [diagnosis.broken(detail, one) for one in candidate]
        if alike
        else [_misshapen(reference, candidate)] * len(theirs)
    )
    return _all_measured(reference, candidate, metrics, mine, theirs)


def compare_asked(
    gallery: Tensor, right: Tensor, drawn: Mapping[Of, Tensor], metrics: Sequence[Metric]
) -> tuple[Measurement, ...]:
    """Measure whether drawn pictures show what was asked for, each model's to the captioned pictures.

    Args:
        gallery: The captioned pictures [m, 3, h, w] in [0, 1].
        right: The number of the picture that each prompt asks for [n].
        drawn: Pictures of the prompts [n, 3, h, w], by whom.
        metrics: That take what was asked.
    """
    return tuple(
        _record(
            metric,
            of,
            "ground_truth",
            registry.get(metric.name).measure(images, gallery, right).tolist(),
            [None if bool(one.isfinite().all()) else f"{of} has a picture that is not finite" for one in images],
        )
        for metric in metrics
        for of, images in drawn.items()
    )


def _misshapen(reference: Tensor, candidate: Tensor) -> str:
    return f"shape {list(candidate.shape)} where {list(reference.shape)} is expected"


def _all_measured(
    reference: Tensor,
    candidate: Tensor,
    metrics: Sequence[Metric],
    of_candidate: Sequence[str | None],
    of_reference: Sequence[str | None] | None = None,
) -> tuple[Measurement, ...]:
    """The candidate to the reference by every metric; NaN where a text says why it cannot be."""
    theirs = of_reference or [None] * len(reference)
    problems = [
        (first and f"reference has {first}") or (second and f"candidate has {second}")
        for first, second in zip(theirs, of_candidate, strict=True)
    ]
    usable, found = [index for index, text in enumerate(problems) if text is None], []
    for metric in metrics:
        values = [math.nan] * len(reference)
        if usable:
            first, second = reference[usable], candidate[usable].to(reference.device)
            measured = registry.get(metric.name).measure(first, second, net=metric.net)
            for index, value in zip(usable, measured.tolist(), strict=True):
                values[index] = value
        found.append(_record(metric, "candidate", "reference", values, problems))
    return tuple(found)


def takes(metric: Metric) -> registry.Takes:
    """What a metric is measured of."""
    return registry.takes(metric.name)


def tensor_metrics() -> tuple[str, ...]:
    """The metrics that compare tensors."""
    return tuple(name for name in registry.names() if registry.takes(name) == "tensors")


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
    record["problems"] = list(measurement.problems)
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
    return Measurement(**{**record, "values": values, "problems": tuple(record["problems"])})


def _number(value: float | Mapping[str, Any]) -> float:
    if isinstance(value, Mapping):
        return math.inf if value.get("exact") is True else math.nan
    return float(value)


def _identity(measurement: Measurement) -> Measurement:
    return replace(measurement, values=(), problems=())


def _appended(one: Measurement, more: Measurement) -> Measurement:
    return replace(one, values=one.values + more.values, problems=one.problems + more.problems)


def _unusable(images: Tensor, truth: Tensor) -> list[str | None]:
    """Why each image cannot be measured, None where it can."""
    if images.shape != truth.shape:
        return [f"shape {list(images.shape)} where {list(truth.shape)} is expected"] * len(truth)
    return [diagnosis.broken(original, image) for original, image in zip(truth, images, strict=True)]


def _looks(originals: Tensor, images: Tensor, unusable: Sequence[str | None]) -> list[str | None]:
    """What each measurable image looks like, None where nothing is suspected."""
    if originals is images or any(text and text.startswith("shape") for text in unusable):
        return [None] * len(unusable)
    usable = [index for index, text in enumerate(unusable) if text is None]
    found = dict.fromkeys(range(len(unusable)))
    mixed = diagnosis.another([originals[i] for i in usable], [images[i] for i in usable])
    for place, index in enumerate(usable):
        if place in mixed:
            found[index] = f"another image of the set (number {usable[mixed[place]]}): their order is wrong"
        else:
            found[index] = diagnosis.likeness(originals[index], images[index])
    return list(found.values())


def _measured(
    metric: Metric,
    of: Of,
    against: Against,
    *,
    sets: Mapping[str, Tensor],
    unusable: Mapping[str, Sequence[str | None]],
    looks: Mapping[str, Sequence[str | None]],
) -> Measurement:
    module = registry.get(metric.name)
    if not registry.is_image_metric(metric.name):
        raise EvalError(f"{metric.name} does not compare images; it is measured by eval.metrics.{metric.name}")
    usable = [i for i, pair in enumerate(zip(unusable[of], unusable[against], strict=True)) if pair == (None, None)]
    values = [math.nan] * len(unusable[of])
    if usable:
        device = sets["ground_truth"].device
        index = torch.tensor(usable)
        first, second = (sets[name][index.to(sets[name].device)].to(device) for name in (against, of))
        for i, value in zip(usable, module.measure(first, second, net=metric.net).tolist(), strict=True):
            values[i] = value
    problems = [_described((of, against), unusable, looks, i) for i in range(len(values))]
    return _record(metric, of, against, values, problems)


def _described(
    pair: tuple[str, str],
    unusable: Mapping[str, Sequence[str | None]],
    looks: Mapping[str, Sequence[str | None]],
    index: int,
) -> str | None:
    for name in pair:
        if unusable[name][index]:
            return f"{name} has {unusable[name][index]}"
    for name in pair:
        if looks[name][index]:
            return f"{name} looks broken: {looks[name][index]}"
    return None


def _record(
    metric: Metric, of: Of, against: Against, values: Sequence[float], problems: Sequence[str | None]
) -> Measurement:
    module = registry.get(metric.name)
    return Measurement(
        metric=metric.name,
        net=metric.net,
        unit=module.UNIT,
        higher_is_better=module.HIGHER_IS_BETTER,
        of=of,
        against=against,
        values=tuple(values),
        problems=tuple(problems),
        definition=module.DEFINITION,
        net_digest=module.digest(metric.net) if module.NEEDS_NET else None,
    )
