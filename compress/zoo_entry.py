"""A finished run as a zoo entry: what the pipeline leaves in the run directory, and how an entry is read from it."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from compress import components, extras
from compress.errors import UserError
from compress.evaluation import Measured
from compress.export_stage import Exported
from compress.files import parts_of, read_json, write_bytes, write_json, write_tensors
from compress.nn.batches import named, take, unnamed
from compress.nn.qmodules import quantized
from compress.plan import Plan
from compress.records import Variant
from compress.report_pictures import pixels
from compress.reporting import mean_of
from compress.rivals import conditions
from compress.zoo import Entry, Sample

SAMPLES = 2
# Integer kernels of different processors round ties apart; float kernels only sum in another order.
INTEGER_TOLERANCE = {"max_difference": 0.08, "min_psnr_db": 45.0}
FLOAT_TOLERANCE = {"max_difference": 2 / 255, "min_psnr_db": 60.0}
INTEGER_TENSORS = {"min_sqnr_db": 40.0}  # of components that make no pictures: their range is their own
FLOAT_TENSORS = {"min_sqnr_db": 60.0}
TAKES = {
    "latents": "the diffusion UNet's latents, float32 {}",
    "pictures": "image, float32 {}, RGB in [0, 1]",
    "noisy_latents": "noisy latents, float32 {}; time steps, float32 {}; hidden states, float32 {}",
    "prompts": "token ids, int64 {}",
}
GIVES = {
    "image": "image, float32 {}, RGB in [0, 1]",
    "latents": "the diffusion UNet's latents, float32 {}",
    "prediction": "what the diffusion UNet predicts of the noise, float32 {}",
    "states": "hidden states, float32 {}",
}


def write_entry_files(
    plan: Plan, root: Path, variant: Variant, measured: Measured, exported: Sequence[Exported]
) -> None:
    """Leave in the run directory what a zoo entry needs besides the artifacts: samples, preview, facts."""
    inputs = named(take(measured.basis.inputs, 0, SAMPLES))
    pictures, integers = measured.basis.truth is not None, bool(quantized(variant.module))
    by_kind = (INTEGER_TOLERANCE, FLOAT_TOLERANCE) if pictures else (INTEGER_TENSORS, FLOAT_TENSORS)
    tolerance = by_kind[0] if integers else by_kind[1]
    samples = []
    for item in exported:
        name = f"{item.path.name}.safetensors"
        write_tensors(root / "samples" / name, {**inputs, "output": item.outputs[:SAMPLES]})
        samples.append({"file": item.path.name, "format": item.format, "tensors": name, **tolerance})
    first = exported[0]
    if pictures:
        pairs = zip(measured.basis.reference[:SAMPLES], first.outputs[:SAMPLES], strict=True)
        rows = [torch.cat(pair, dim=2) for pair in pairs]
        _write_png(root / "samples" / "preview.png", torch.cat(rows, dim=1))
    licence, tools = components.licence_of(plan.teacher), tools_of([item.format for item in exported])
    described = {"samples": samples, "facts": _facts(plan, measured, first), "licence": licence, "tools": tools}
    write_json(root / "entry.json", {"schema": 1, **described})


def entry_from_run(root: Path) -> Entry:
    """The zoo entry of a run that passed.

    Raises:
        UserError: no finished run, or one that failed its gates or exported nothing.
    """
    status = read_json(root / "status.json") if (root / "status.json").exists() else {}
    if not (root / "entry.json").exists():
        state = status.get("state", "missing")
        raise UserError(
            f"{root}: the run is {state} and has nothing for a zoo; only runs that passed and exported a file have"
        )
    described = read_json(root / "entry.json")
    plan = read_json(root / "plan.json")
    samples = []
    for sample in described["samples"]:
        tensors = _load(root / "samples" / sample["tensors"])
        inputs = unnamed(tensors)
        samples += [
            Sample(
                file=sample["file"],
                format=sample["format"],
                inputs=take(inputs, i, i + 1),
                output=tensors["output"][i : i + 1],
                **{limit: sample.get(limit) for limit in ("max_difference", "min_psnr_db", "min_sqnr_db")},
            )
            for i in range(len(tensors["output"]))
        ]
    preview = root / "samples" / "preview.png"
    verdicts: Sequence[Mapping[str, object]] = read_json(root / "verdicts.json")
    return Entry(
        name=plan["recipe"],
        component=plan["component"],
        files={
            part.relative_to(root / "artifacts").as_posix(): part
            for s in described["samples"]
            for part in parts_of(root / "artifacts" / s["file"])
        },
        samples=tuple(samples),
        recipe=(root / "recipe.yaml").read_text(encoding="utf-8"),
        verdicts=tuple(verdicts),
        facts=described["facts"],
        licence=described["licence"],
        tools=described["tools"],
        preview_png=preview.read_bytes() if preview.exists() else None,
    )


def _facts(plan: Plan, measured: Measured, first: Exported) -> dict[str, int | float | str]:
    cost, basis = measured.final.cost, measured.basis
    kind = components.kind_of(plan.source.arch.kind)
    facts: dict[str, int | float | str] = {
        "parameters": cost.parameters,
        "macs": cost.macs,
        "bytes": first.sizes.candidate_bytes,
        "variant_key": plan.variant_key,
        "recipe_sha256": plan.digest,
        "input": TAKES[kind.feed].format(*(list(x[:1].shape) for x in basis.inputs)),
        "output": GIVES[kind.output].format(list(basis.reference[:1].shape)),
    }
    if first.latency is not None:
        facts["latency_ratio"] = round(first.latency.ratio, 4)
        facts |= {"latency_host": first.latency.host, "latency_runtime": first.latency.runtime}
    if kind.output != "states":
        facts["image_size"] = plan.recipe.data.evaluation.size
    for metric in ("psnr", "ssim", "lpips"):
        ours, theirs = mean_of(first.measurements, metric), mean_of(first.measurements, metric, "reference")
        if ours is not None and theirs is not None:
            facts |= {f"{metric}_mean": round(ours, 4), f"{metric}_mean_of_teacher": round(theirs, 4)}
    for metric in ("sqnr", "cosine"):
        ours = mean_of(first.measurements, metric)
        if ours is not None:
            facts[f"{metric}_mean"] = round(ours, 4)
    return facts | conditions(measured, first.measurements)


def tools_of(formats: Sequence[str]) -> dict[str, str]:
    """Versions of what made the files: the packages of their formats' extras."""
    packages = {extras.DISTRIBUTION, "torch", *(package for form in formats for package in extras.packages(form))}
    found = {package: extras.version(package) for package in sorted(packages)}
    return {package: version for package, version in found.items() if version is not None}


def _load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _write_png(path: Path, image: torch.Tensor) -> None:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels(image)).save(data, format="PNG", optimize=True)
    write_bytes(path, data.getvalue())
