"""`mdcompress bench`: two models timed against each other."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from compress.errors import UserError

if TYPE_CHECKING:
    from compress.records import Inputs
    from compress.targets import Phone
    from eval.latency_outcome import Outcome
    from eval.metrics.latency import LatencyRatio

Pair = tuple[Path, Path]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]
Target = Annotated[str | None, Parameter(help="torch, onnxruntime, litert, executorch, openvino or android.")]
Shape = Annotated[
    list[str] | None,
    Parameter(name="--input", negative="", help="Shape of an input, in order: 1x8x32x32. Repeat it for several."),
]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class OnPhone:
    """Flags of --target android."""

    device: Annotated[str | None, Parameter(help="Android: the serial that `adb devices` shows.")] = None
    binary: Annotated[str | None, Parameter(help="Android: the benchmark program, a path on the device.")] = None
    cpus: Annotated[str | None, Parameter(help="Android: cores to run on, a mask for taskset such as f0.")] = None


HERE = OnPhone()


def bench(
    reference: Path,
    candidate: Path,
    *,
    target: Target = None,
    budget: float = 20.0,
    max_ratio: float | None = None,
    undecided: Literal["fail", "pass"] = "fail",
    threads: int = 1,
    component: str | None = None,
    pixels: int = 256,
    shapes: Shape = None,
    phone: OnPhone = HERE,
    as_json: Json = False,
) -> int:
    """Time two component folders or two files against each other: medians, ratio, interval, noise floor, verdict.

    Parameters
    ----------
    reference
        What is compared with: a component folder, a run directory, an exported file, or a preset's name.
    candidate
        The other, of the same kind.
    target
        Where: by default this host, in the runtime of such files.
    budget
        Seconds to measure at most; less where the verdict is clear before.
    max_ratio
        The largest candidate / reference that passes; 1.03 unless given.
    undecided
        What it comes to where the limit lies inside the interval.
    threads
        Of the runtime. One can be timed on a busy machine, more need a quiet one.
    component
        Whose inputs the files take, where they do not lie in a run directory: md-tiny/decoder, or a component folder.
    pixels
        Side of the picture that the inputs are for.
    shapes
        The inputs' shapes instead; float32.
    phone
        Device, program and cores of --target android.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing, targets
    from compress.runs import Event
    from eval.latency_outcome import MARGIN, outcome
    from eval.metrics.latency import Sampling

    limit = 1 + MARGIN if max_ratio is None else max_ratio
    _check(budget=budget, limit=limit, threads=threads)
    pair = _there(reference), _there(candidate)
    name = targets.chosen(*pair, target)
    with drawing.Drawer(drawing.console(stderr=True)) as drawer:

        def tell(share: float) -> None:
            drawer(Event(kind="progress", name=f"timing in {name}", done=round(100 * share), total=100))

        request = targets.Request(
            reference=pair[0],
            candidate=pair[1],
            inputs=_inputs(pair, component, pixels, shapes),
            threads=threads,
            sampling=Sampling(seconds=budget, limits=(limit,)),
            tell=tell,
            phone=_phone(phone),
        )
        found = targets.get(name).measure(request)
    judged = outcome(found, limit)
    if as_json:
        drawing.print_json(_record(found, judged, name, limit, pair))
    else:
        _draw(found, judged, name, pair)
    return 0 if judged.state == "pass" or (judged.state == "undecided" and undecided == "pass") else 1


def _check(*, budget: float, limit: float, threads: int) -> None:
    if not 0 < budget < 86_400 or not 0 < limit < 1e6 or threads < 1:
        raise UserError(f"--budget {budget:g}, --max-ratio {limit:g}, --threads {threads}: each must be above 0")


def _there(path: Path) -> Path:
    """A path as it is, or the folder of the preset of that name."""
    from compress.components import find

    return path if path.exists() or path.suffix else find(str(path))


def _phone(flags: OnPhone) -> "Phone":
    from compress.targets import Phone

    return Phone(serial=flags.device, binary=flags.binary, cpus=flags.cpus)


def _inputs(pair: Pair, component: str | None, pixels: int, shapes: list[str] | None) -> "Inputs":
    """Seeded inputs of one call: of the shapes given, or of the component's.

    Raises:
        UserError: neither was given and neither can be seen.
    """
    import torch

    from compress.components import kind_of, read_arch
    from compress.nn.structure import example_inputs

    generator = torch.Generator().manual_seed(0)
    if shapes:
        return tuple(torch.randn(_sizes(text), generator=generator) for text in shapes)
    folder = _component_of(pair, component)
    if folder is None:
        raise UserError(
            f"{pair[0]} does not say what inputs it takes: name its component (--component md-tiny/decoder) or their "
            "shapes (--input 1x8x32x32)"
        )
    arch = read_arch(folder)
    return tuple(
        torch.randn(one.shape, generator=generator)
        if one.is_floating_point()
        else torch.ones(one.shape, dtype=one.dtype)
        for one in example_inputs(kind_of(arch.kind), arch.config, pixels)
    )


def _component_of(pair: Pair, component: str | None) -> Path | None:
    from compress.components import find
    from compress.targets import component_folder

    if component is not None:
        return Path(component) if Path(component).exists() else find(component)
    for path in pair:
        beside = path.parent.parent / "variant"  # of a run's artifacts/
        folder = component_folder(path) or (beside if (beside / "arch.json").exists() else None)
        if folder is not None:
            return folder
    return None


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--input {text}: write a shape as 1x8x32x32")
    return tuple(map(int, parts))


def _record(found: "LatencyRatio", judged: "Outcome", name: str, limit: float, pair: Pair) -> dict[str, Any]:
    medians = found.medians_ms
    return {
        "reference": {"path": str(pair[0]), "median_ms": medians[0]},
        "candidate": {"path": str(pair[1]), "median_ms": medians[1]},
        "target": name,
        "max_ratio": limit,
        "verdict": judged.state,
        "reason": judged.text,
        **asdict(found),
    }


def _draw(found: "LatencyRatio", judged: "Outcome", name: str, pair: Pair) -> None:
    from compress import drawing

    console, medians = drawing.console(), found.medians_ms
    rows = [(label, f"{ms:.4g} ms", path) for label, ms, path in zip("AB", medians, pair, strict=True)]
    console.print(drawing.table(("", "median", ""), rows, numeric=("median",)))
    cores = f" on processor {', '.join(map(str, found.cpus))}" if found.cpus else ""
    steady = "" if found.settled else ", whose end was not seen"
    lines = (
        f"ratio B/A    {found.ratio:.4f}, 95 % interval {found.low:.4f} to {found.high:.4f}",
        f"noise floor  {found.noise_floor:.4f} (A against itself, in between)",
        f"verdict      {judged.state.upper()}: {judged.text}",
        f"device       {found.host}" + (f", {found.busy:.0%} of the time busy with other work" if found.busy else ""),
        f"how          {found.runtime}, {found.threads} thread{'s' * (found.threads > 1)}{cores}, {found.clock} time; "
        f"{found.pairs} pairs, {found.looks} looks, warm-up of {found.warmup} calls{steady}",
    )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
