"""Recipe -> Plan: what will run, in which order, under which keys, and what it will cost; no weight is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibration.prompts import CAPTIONS
from compress import asked, drawn, feeds, registry
from compress import recipe as recipes
from compress.components import beside, check_variant, cost_of, files_of, find, kind_of, read_arch
from compress.errors import UserError
from compress.files import sha256
from compress.nn.affine import stored_bytes
from compress.nn.qmodules import quantizable
from compress.nn.structure import Kind
from compress.own_code import Code
from compress.recipe import Data, Gate, PlannedConfig, Recipe
from compress.records import Arch, Held, Needs, Prediction
from compress.store import code_digest, key_of

OWN_CAPTIONS = "captions.txt"  # of a family: one a line, of what its model draws


class CannotHold(UserError):
    """Formats of a recipe cannot hold what its stages will leave; `problems` has the reasons of each."""

    def __init__(self, problems: Mapping[str, Sequence[str]]) -> None:
        lines = [f"export {name}: {problem}" for name, found in problems.items() for problem in found]
        super().__init__("\n".join(lines))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A figure known within bounds before anything runs."""

    low: int
    high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a variant will cost: parameters, MACs for one image of the evaluation size, bytes of its weights."""

    parameters: Span
    macs: Span
    weight_bytes: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """One stage with the key of its result and what the variant will cost after it."""

    method: str
    config: Any
    key: str
    forecast: Forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that will happen, decided."""

    recipe: Recipe
    digest: str  # of the recipe
    teacher: Path
    source: feeds.Source  # of its inputs
    teacher_key: str
    reference: Forecast
    stages: tuple[PlannedStage, ...]
    calibration_digest: str
    evaluation_digest: str
    notes: tuple[str, ...] = ()  # what stands in for inputs that the component's family cannot give
    origins: tuple[Any, ...] = ()  # code of somebody's own that may build components
    drawn: Mapping[str, Path] = field(default_factory=dict)  # the model's other networks, where pictures are drawn

    @property
    def variant_key(self) -> str:
        """The key of what the last stage leaves."""
        return self.stages[-1].key if self.stages else self.teacher_key

    def to_json(self) -> dict[str, Any]:
        """What plan.json holds."""
        return {
            "schema": 1,
            "recipe": self.recipe.name,
            "recipe_digest": self.digest,
            "component": self.recipe.component,
            "teacher_key": self.teacher_key,
            "calibration_digest": self.calibration_digest,
            "evaluation_digest": self.evaluation_digest,
            "reference": asdict(self.reference),
            "stages": [
                {
                    "method": stage.method,
                    "config": stage.config.model_dump(mode="json"),
                    "key": stage.key,
                    "forecast": asdict(stage.forecast),
                }
                for stage in self.stages
            ],
            "export": [item.format for item in self.recipe.export],
            "notes": list(self.notes),
        }


def with_images(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe on somebody's own photographs; the folder is split between calibration and evaluation."""
    data = recipe.data
    source = str(folder.resolve())
    return replace(
        recipe,
        data=data.model_copy(
            update={
                "calibration": data.calibration.model_copy(update={"source": source}),
                "evaluation": data.evaluation.model_copy(update={"source": source}),
            }
        ),
    )


def make_plan(recipe: Recipe, *, checkpoint: Path | None = None, code: Code | None = None) -> Plan:
    """Resolve a recipe against its component (or the code named instead of it), its data and its methods.

    Raises:
        UserError: an unknown component, a method that cannot do what is asked, a format that cannot hold the result.
        DataError: the photographs cannot be had.
    """
    code = code or Code(teacher=None, companion=None, origins=())
    teacher = code.teacher or find(recipe.component, checkpoint)
    arch = read_arch(teacher, code.origins)
    check_variant(teacher, code.origins)
    kind = kind_of(arch.kind)
    _check_gates(recipe, kind)
    companions = _companions(recipe, arch, checkpoint, code)
    for companion in companions.values():
        check_variant(companion, code.origins)
    others = {} if recipe.data.drawn is None else drawn.companions(recipe.component, teacher, checkpoint)
    for folder in others.values():
        check_variant(folder)
    data = _with_own_captions(recipe.data, teacher.parent)
    if data.drawn is not None:
        drawn.texts(data)
    if any(registry.metric_traits(gate.metric).of_asked for gate in recipe.gates):
        asked.check(data.evaluation.source)
    source = feeds.Source(arch=arch, folder=teacher, companions=companions, data=data, seed=recipe.seed)
    feed, pixels = feeds.of(kind), recipe.data.evaluation.size
    digests = feed.digests(source)
    teacher_key = key_of(
        {"teacher": _folder_digest(teacher), "companions": {n: _folder_digest(f) for n, f in companions.items()}}
    )
    read = {name: digest for name, digest in digests.items() if name != "evaluation"}
    prediction = Prediction(ends=(arch,))
    stages, parent = [], teacher_key
    for stage in recipe.stages:
        method = registry.load(stage.method)
        prediction = method.predict(prediction, stage.config)
        parent = _stage_key(stage, method, parent, recipe.seed, read)
        stages.append(
            PlannedStage(method=stage.method, config=stage.config, key=parent, forecast=_forecast(prediction, pixels))
        )
    _check_exports(recipe, prediction)
    return Plan(
        recipe=recipe,
        digest=recipes.digest(recipe),
        teacher=teacher,
        source=source,
        teacher_key=teacher_key,
        reference=_forecast(Prediction(ends=(arch,)), pixels),
        stages=tuple(stages),
        calibration_digest=digests["calibration"],
        evaluation_digest=digests["evaluation"],
        notes=feed.notes(source),
        origins=code.origins,
        drawn=others,
    )


def _companions(recipe: Recipe, arch: Arch, checkpoint: Path | None, code: Code) -> dict[str, Path]:
    """The folders of the components that the feed runs, found beside the component."""
    feed, family = feeds.of(kind_of(arch.kind)), recipe.component.rpartition("/")[0]
    found = {leaf: code.companion or find(f"{family}/{leaf}", checkpoint) for leaf in feed.COMPANIONS}
    there = {leaf: beside(f"{family}/{leaf}", checkpoint) for leaf in feed.OPTIONAL}
    there |= {"encoder": code.companion} if code.companion and "encoder" in there else {}
    found |= {leaf: folder for leaf, folder in there.items() if folder is not None}
    archs = {leaf: read_arch(folder, code.origins) for leaf, folder in found.items()}
    for leaf, companion in archs.items():
        if companion.kind.rpartition(".")[2] != leaf:
            raise UserError(
                f"{checkpoint} has no {leaf}; a checkpoint for {recipe.component} is a folder with "
                f"{recipe.component.rpartition('/')[2]}/ and {leaf}/ in it, each with arch.json and weights.safetensors"
            )
    feed.check(arch, archs)
    return found


def _with_own_captions(data: Data, family: Path) -> Data:
    """`captions` as those that the component's model knows, where such a file lies beside it; else built-in ones."""
    own = family / OWN_CAPTIONS
    if not own.is_file():
        return data
    sides = {"calibration": data.calibration, "evaluation": data.evaluation}
    asking = {name: side for name, side in sides.items() if side.source == CAPTIONS}
    return data.model_copy(update={name: side.model_copy(update={"source": str(own)}) for name, side in asking.items()})


def _check_gates(recipe: Recipe, kind: Kind) -> None:
    """Refuse metrics of pictures where none are made or drawn, and of steps where they are not the same."""
    traits = [registry.metric_traits(name) for name in registry.metrics()]
    pictures = {one.name for one in traits if one.of_images and not one.of_drawn and kind.output != "image"}
    drawings = {one.name for one in traits if one.of_drawn}
    steps = {one.name for one in traits if one.of_drawn and not one.of_asked}
    used, how = {gate.metric for gate in recipe.gates}, recipe.data.drawn
    wrong = sorted(used & (pictures | drawings)) if how is None else []
    if wrong:
        fitting = ", ".join(one.name for one in traits if one.name not in pictures | drawings)
        raise UserError(
            f"gates: {', '.join(wrong)} compare pictures, and {recipe.component} makes {kind.output}, which are "
            f"compared with the uncompressed component's; metrics that fit: {fitting}; or let its model draw pictures "
            "with it: data.drawn"
        )
    relative = [gate.metric for gate in recipe.gates if gate.metric in pictures and not _to_teacher(gate)]
    if relative:
        raise UserError(
            f"gates: {', '.join(relative)} of drawn pictures are compared with the uncompressed model's, there is no "
            "other truth: against: reference, with min or max"
        )
    if used & steps and how is not None and how.teacher_steps not in (None, how.steps):
        raise UserError(
            f"gates: {', '.join(used & steps)} compares step by step, and {how.steps} are not the teacher's "
            f"{how.teacher_steps}"
        )


def _to_teacher(gate: Gate) -> bool:
    """Whether a gate on drawn pictures needs no other truth than the teacher's pictures."""
    within = gate.min is not None or gate.max is not None
    return gate.against == "baseline" or (gate.against == "reference" and gate.of == "candidate" and within)


def _check_exports(recipe: Recipe, prediction: Prediction) -> None:
    """Ask each format whether it can hold what the stages will leave."""
    problems = {}
    for item in recipe.export:
        exporter = registry.load(f"export.{item.format}")
        found = [
            problem
            for held in _held(prediction)
            for problem in exporter.refuse(held.bits, held.granularity, held.activation_bits, item.config)
        ]
        problems[item.format] = found or _misfits(exporter, prediction)
    if any(problems.values()):
        raise CannotHold({name: tuple(dict.fromkeys(found)) for name, found in problems.items() if found})


def _misfits(exporter: Any, prediction: Prediction) -> list[str]:
    """The first layer whose shape a format cannot hold, where it is known how each will be held, and how many more."""
    refuse = getattr(exporter, "refuse_shape", None)
    if refuse is None or prediction.others or prediction.granularity is None:
        return []
    for arch in prediction.ends:
        with torch.device("meta"):
            layers = _to_quantize(kind_of(arch.kind).build(arch.config), prediction)
        found = [f"{n}: {why}" for n, x in layers.items() for why in refuse(x.weight.shape, prediction.granularity)]
        if found:
            return [found[0] + (f" (so it is for {len(found) - 1} layers more)" if len(found) > 1 else "")]
    return []


def _held(prediction: Prediction) -> tuple[Held, ...]:
    """Every way in which a layer may be held."""
    first = Held(
        bits=prediction.weight_bits,
        granularity=prediction.granularity,
        activation_bits=prediction.activation_bits,
    )
    return (first, *prediction.others)


def _folder_digest(folder: Path) -> dict[str, str]:
    """What a component is read from; two parts of one file differ in their name."""
    files = {path.name: sha256(path) for path in files_of(folder)}
    return files if "arch.json" in files else files | {"part": folder.name}


def _stage_key(stage: PlannedConfig, method: Any, parent: str, seed: int, data: dict[str, str]) -> str:
    needs_data = method.NEEDS != Needs.NOTHING
    return key_of(
        {
            "method": stage.method,
            "config": stage.config.model_dump(mode="json"),
            "parent": parent,
            "data": data if needs_data else None,
            "seed": seed if needs_data else None,
            "code": code_digest(Path(method.__file__)),
            "torch": torch.__version__,
        }
    )


def _forecast(prediction: Prediction, pixels: int) -> Forecast:
    costs, stored = [], []
    for arch in prediction.ends:
        with torch.device("meta"):
            module = kind_of(arch.kind).build(arch.config)
        measured = cost_of(arch, pixels)
        costs.append(measured)
        stored += [measured.weight_bytes - saved for saved in _bytes_saved(module, prediction)]
    return Forecast(
        parameters=_span([c.parameters for c in costs]),
        macs=_span([c.macs for c in costs]),
        weight_bytes=_span(stored),
    )


def _span(values: list[int]) -> Span:
    return Span(low=min(values), high=max(values))


def _to_quantize(module: nn.Module, prediction: Prediction) -> dict[str, Any]:
    """The layers that are not left in float."""
    return {
        name: layer
        for name, layer in quantizable(module).items()
        if not any(fnmatchcase(name, pattern) for pattern in prediction.in_float)
    }


def _bytes_saved(module: nn.Module, prediction: Prediction) -> tuple[int, int]:
    """What quantizing the weights saves at least and at most: float32 against packed codes, scales and tables."""
    layers = _to_quantize(module, prediction).values()
    saved = [[_saved(layer.weight.shape, held) for held in _held(prediction)] for layer in layers]
    least, most = sum(min(row) for row in saved), sum(max(row) for row in saved)
    if prediction.bytes_per_weight is not None:
        least = max(least, ceil((4 - prediction.bytes_per_weight) * sum(layer.weight.numel() for layer in layers)))
    return least, most


def _saved(shape: Sequence[int], held: Held) -> int:
    if held.granularity is None:
        return 0
    return 4 * prod(shape) - stored_bytes(shape, bits=held.bits, granularity=held.granularity)
