"""What a recipe's author writes, part by part: pictures, gates, and the whole before methods are looked up."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from compress import registry
from compress.schema import Schema

NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$"
LIMITS = ("min", "max", "max_drop", "max_rise", "max_ratio")
WINDOW = ("min", "max")
RELATIVE_LIMITS = ("max_drop", "max_rise", "max_ratio")

Net = Literal["st-alex", "alex", "vgg", "squeeze"]
Solver = Literal["ddim", "dpm_solver"]
Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def _traits_of(fields: Mapping[str, Any]) -> registry.MetricTraits | None:
    """Of the gate under validation; None where its metric was refused already."""
    return registry.metric_traits(fields["metric"]) if "metric" in fields else None


def _default_net(fields: dict[str, Any]) -> Net | None:
    traits = _traits_of(fields)
    return "st-alex" if traits and traits.needs_net else None


class Pictures(Schema):
    """Which photographs, how many, how large; or for a text encoder which captions, and how many."""

    source: Word = Field(
        description="'photographs' (they come with the project) or a folder of pictures; of a text encoder 'captions', "
        "a folder with captions.tsv, or a text file with one a line"
    )
    count: int = Field(ge=1, le=100_000, description="how many crops, captions or noisy latents")
    size: int = Field(256, ge=64, le=4096, multiple_of=8, description="pixels on each side; of no use to captions")


class Drawn(Schema):
    """How a UNet or a text encoder draws pictures in its model, and its teacher the same: one prompt, one seed."""

    count: int = Field(16, ge=1, le=10_000, description="prompts, the first of the evaluation's captions")
    solver: Solver = "dpm_solver"
    steps: int = Field(20, ge=1, le=1000, description="of sampling")
    guidance: float = Field(3.0, ge=0, le=30, description="1: none, as for a UNet that has it built in")
    teacher_solver: Solver | None = Field(None, description="where it is not the same")
    teacher_steps: int | None = Field(None, ge=1, le=1000, description="where they are not the same")
    teacher_guidance: float | None = Field(None, ge=0, le=30, description="where it is not the same")
    evaluated_at: Literal["schedule", "steps"] = Field(
        "schedule",
        description="a UNet's time steps in evaluation: over the whole schedule, or those of these steps of sampling "
        "alone, and no empty captions where guidance is 1: for a UNet that is never asked for others",
    )


class Data(Schema):
    """What to calibrate and train on, and other samples to judge on."""

    calibration: Pictures
    evaluation: Pictures
    drawn: Drawn | None = Field(None, description="pictures, for gates on pictures of what makes none itself")


class Gate(Schema):
    """One demand on the variant: a metric, a statistic over pictures, and exactly one limit."""

    metric: str = Field(description="a file name of eval/metrics")
    net: Net | None = Field(
        default_factory=_default_net,
        description="LPIPS only: the network that compares; never substituted",
    )
    against: Literal["reference", "ground_truth", "baseline"] = "reference"
    of: Literal["candidate", "reference"] = "candidate"
    statistic: Literal["mean", "median", "p5", "worst"] = Field("mean", description="p5: the bad tail")
    min: float | None = Field(None, description="smallest allowed value")
    max: float | None = Field(None, description="largest allowed value")
    max_drop: float | None = Field(None, description="largest allowed drop below the reference, both to ground truth")
    max_rise: float | None = Field(None, description="largest allowed rise above the reference, both to ground truth")
    max_ratio: float | None = Field(None, description="candidate over reference")
    max_gain: float | None = Field(
        None, ge=0, description="beside a drop, rise or ratio: how much better is still believed"
    )
    undecided: Literal["fail", "pass"] = Field(
        "fail", description="latency only: what it comes to where the limit lies inside the interval"
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        known = registry.metrics()
        if metric not in known:
            raise ValueError(f"no metric {metric!r}{registry.did_you_mean(metric, known)}")
        return metric

    @field_validator("net")
    @classmethod
    def _net_fits(cls, net: str | None, info: ValidationInfo) -> str | None:
        traits = _traits_of(info.data)
        if traits and traits.needs_net and net is None:
            raise ValueError(f"{traits.name} needs a net: st-alex, alex, vgg or squeeze")
        if traits and net is not None and not traits.needs_net:
            raise ValueError(f"{traits.name} has no net; only lpips has one")
        return net

    @field_validator("against")
    @classmethod
    def _against_fits(cls, against: str, info: ValidationInfo) -> str:
        traits = _traits_of(info.data)
        if traits and not traits.of_images and against == "ground_truth":
            raise ValueError(f"{traits.name} is compared with the reference; there is no ground truth of it")
        return against

    @field_validator("of")
    @classmethod
    def _of_fits(cls, of: str, info: ValidationInfo) -> str:
        traits = _traits_of(info.data)
        if of == "reference" and traits and not traits.of_images:
            raise ValueError(f"{traits.name} is taken of the candidate; leave 'of' out")
        if of == "reference" and info.data.get("against") == "reference":
            raise ValueError("the reference against itself says nothing; write 'against: ground_truth'")
        return of

    @field_validator("statistic")
    @classmethod
    def _statistic_fits(cls, statistic: str, info: ValidationInfo) -> str:
        traits = _traits_of(info.data)
        if traits and not traits.sampled and statistic in ("p5", "worst"):
            raise ValueError(f"{traits.name} is one number for the variant, not one per picture; leave statistic out")
        return statistic

    @field_validator("undecided")
    @classmethod
    def _undecided_fits(cls, undecided: str, info: ValidationInfo) -> str:
        if undecided == "pass" and info.data.get("metric", "latency") != "latency":
            raise ValueError("only latency can be undecided; leave it out")
        return undecided

    @field_validator(*LIMITS)
    @classmethod
    def _limit_fits(cls, limit: float | None, info: ValidationInfo) -> float | None:
        traits = _traits_of(info.data)
        if limit is None or traits is None:
            return limit
        if info.field_name not in traits.limits and not (traits.sampled and info.field_name in WINDOW):
            raise ValueError(
                f"{traits.name} takes no {info.field_name}; limits that fit it: {', '.join(traits.limits)}"
            )
        if not traits.sampled and limit <= 0:
            raise ValueError(f"must be above 0, not {limit}")
        plain = info.data.get("against") in ("reference", "baseline") and info.data.get("of") == "candidate"
        if "against" in info.data and "of" in info.data and info.field_name in RELATIVE_LIMITS and not plain:
            raise ValueError(
                f"{info.field_name} compares the candidate with the reference; leave out 'of' and 'against', "
                f"or use {traits.limits[0]}"
            )
        return limit

    @model_validator(mode="after")
    def _one_limit(self) -> "Gate":
        given = [name for name in LIMITS if getattr(self, name) is not None]
        traits = registry.metric_traits(self.metric)
        if len(given) != 1 and not (traits.sampled and given == [*WINDOW]):
            fitting, found = ", ".join(traits.limits), " and ".join(given) or "none"
            raise ValueError(f"a gate has exactly one limit, here {found}; limits that fit {self.metric}: {fitting}")
        if given[0] not in traits.limits and given != [*WINDOW]:
            raise ValueError(
                f"{self.metric} takes no {given[0]} but in a window of min and max; limits that fit it: "
                f"{', '.join(traits.limits)}"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing could pass")
        if self.max_gain is not None and given[0] not in RELATIVE_LIMITS:
            raise ValueError(f"max_gain stands beside {', '.join(RELATIVE_LIMITS)}, not beside {given[0]}")
        return self._sets_fit(traits, given[0])

    def _sets_fit(self, traits: registry.MetricTraits, limit: str) -> "Gate":
        if traits.of_asked and self.against == "reference" and limit not in RELATIVE_LIMITS:
            raise ValueError(
                f"{self.metric} compares with the pictures that were asked for: add 'against: ground_truth', or use "
                f"{traits.limits[1]}"
            )
        if self.against == "baseline" and limit not in RELATIVE_LIMITS:
            raise ValueError(f"{limit} says nothing of a baseline; use {', '.join(RELATIVE_LIMITS)}")
        if self.against == "reference" and traits.sampled and not traits.of_images and limit in RELATIVE_LIMITS:
            raise ValueError(f"{self.metric} is a distance from the reference already; use {traits.limits[0]}")
        return self


class Order(Schema):
    """The key that any stage may carry besides its method's own."""

    out_of_order: Word | None = Field(None, description="why this stage may stand before its turn")


class Whole(Schema):
    """The recipe as written, before methods and formats have been looked up."""

    version: Literal[1] = Field(alias="schema", description="of recipes; this is version 1")
    name: str = Field(pattern=NAME, max_length=200, description="equals the path under recipes/, without .yaml")
    component: Word = Field(description="a preset such as md-tiny/decoder, or a checkpoint's component")
    seed: int = Field(ge=0, lt=2**32)
    data: Data
    stages: list[Any] = Field(min_length=1, description="what is done, in order: prune, distill, quantize")
    gates: list[Any] = Field(description="what the variant and each artifact must pass")
    export: list[Any] = Field(default_factory=list, description="formats to write")
