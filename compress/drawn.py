"""Pictures that a UNet or a text encoder draws in its model, against those of the uncompressed model.

A compressed UNet's single predictions say little of its pictures: errors add up over the steps, or cancel. So both draw
the same prompts from the same noise, and what is compared is the pictures and the latents on the way.

Source: the comparison of a quantized model's pictures with the original's by LPIPS and PSNR, as in SVDQuant (Li et al.
2024, arXiv:2411.05007, section 5.1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from calibration import prompts
from compress import asked
from compress.components import beside, load_variant
from compress.errors import UserError
from compress.feeds._captions import has_captions
from compress.nn.batches import outputs
from compress.written import Data, Drawn, Solver
from eval import compare

PARTS = ("text_encoder", "unet", "decoder")
AT_ONCE = 2  # samples of a module: one prompt, with its text and without


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """What a candidate drew, and how it compares."""

    images: torch.Tensor  # [n, 3, size, size] in [0, 1], as the sheet's
    measurements: tuple[compare.Measurement, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sheet:
    """What a teacher drew, and all that a candidate needs to draw the same."""

    part: str  # of PARTS: what is compressed
    others: Mapping[str, nn.Module]
    teacher: nn.Module
    family: Path  # with tokenizer.json, scheduler.json and latents.json
    prompts: tuple[str, ...]
    how: Drawn
    size: int  # pixels on a side
    seed: int
    images: torch.Tensor  # [n, 3, size, size] in [0, 1]
    latents: torch.Tensor  # [n, steps, z, size / 8, size / 8], after each step
    sought: asked.Asked | None = None  # what the prompts ask for, where a gate is about that


def companions(component: str, teacher: Path, checkpoint: Path | None) -> dict[str, Path]:
    """The folders of the other networks of a component's model.

    Raises:
        UserError: one of them, or a file of settings, is not there.
    """
    from compress.sampling.generator import read_settings

    family, _, part = component.rpartition("/")
    if part not in PARTS[:2]:
        raise UserError(f"data.drawn: {component} makes pictures itself or none; leave it out")
    found = {leaf: beside(f"{family}/{leaf}", checkpoint) for leaf in PARTS if leaf != part}
    missing = [leaf for leaf, folder in found.items() if folder is None]
    if missing:
        raise UserError(
            f"data.drawn: to draw pictures, {component} needs its family's {' and '.join(missing)} with weights; give "
            "a --checkpoint that has them, or leave data.drawn and the gates on pictures out"
        )
    read_settings(teacher.parent)
    return {leaf: folder for leaf, folder in found.items() if folder is not None}


def texts(data: Data) -> tuple[str, ...]:
    """The prompts: the evaluation's own captions where it has any, else built-in ones.

    Raises:
        DataError: there are too few.
    """
    assert data.drawn is not None
    source = data.evaluation.source
    chosen = source if has_captions(source) else prompts.CAPTIONS
    return prompts.load(chosen, split="evaluation", count=data.drawn.count).texts


def draw_teacher(
    part: str,
    teacher: nn.Module,
    folders: Mapping[str, Path],
    family: Path,
    data: Data,
    seed: int,
    *,
    as_asked: bool = False,
) -> Sheet:
    """The teacher's pictures; with `as_asked` also the evaluation's, which the prompts are the names of.

    Raises:
        UserError: the networks do not fit each other or the settings, or what they draw is not finite.
    """
    assert data.drawn is not None
    sheet = Sheet(
        part=part,
        others={leaf: load_variant(folder).module for leaf, folder in folders.items()},
        teacher=teacher,
        family=family,
        prompts=texts(data),
        how=data.drawn,
        size=data.evaluation.size,
        seed=seed,
        images=torch.empty(0),
        latents=torch.empty(0),
    )
    how = data.drawn
    images, latents = draw(
        sheet,
        how.teacher_solver or how.solver,
        how.steps if how.teacher_steps is None else how.teacher_steps,
        how.guidance if how.teacher_guidance is None else how.teacher_guidance,
    )
    source, size = data.evaluation.source, data.evaluation.size
    wanted = asked.load(source, sheet.prompts, size=size) if as_asked else None
    return replace(sheet, images=images, latents=latents, sought=wanted)


def measure(sheet: Sheet, run: Callable[..., torch.Tensor], batch: int, metrics: Sequence[compare.Metric]) -> Drawing:
    """The candidate's pictures, and how they compare with the teacher's.

    Args:
        sheet: The teacher's.
        run: The candidate: a module, or a file in its runtime.
        batch: How many samples it takes at once.
        metrics: Of images, of latents, and of what was asked for.
    """
    how = sheet.how
    images, latents = draw(sheet, how.solver, how.steps, how.guidance, run, batch)
    of_images, of_latents, of_asked = (
        [m for m in metrics if compare.takes(m) == takes] for takes in ("images", "latents", "asked")
    )
    found = compare.joined(
        compare.compare_drawn(theirs, mine, of_images)
        for theirs, mine in zip(sheet.images.split(2), images.split(2), strict=True)
    )
    if of_latents:
        found += compare.compare_tensors(sheet.latents, latents, of_latents)
    if of_asked and sheet.sought is not None:
        both: dict[compare.Of, torch.Tensor] = {"candidate": images, "reference": sheet.images}
        found += compare.compare_asked(sheet.sought.gallery, sheet.sought.right, both, of_asked)
    return Drawing(images=images, measurements=found)


def draw(
    sheet: Sheet,
    solver: Solver,
    steps: int,
    guidance: float,
    run: Callable[..., torch.Tensor] | None = None,
    batch: int = AT_ONCE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [n, 3, size, size], and the latents after each step [n, steps, z, h, w]; by the teacher or by `run`.

    What `run` makes that is not finite gives NaN, which no gate passes.
    """
    from compress.sampling.generator import Way, read_settings
    from compress.sampling.modules import from_modules
    from compress.sampling.series import draw_each

    settings = read_settings(sheet.family)
    parts = {**sheet.others, sheet.part: sheet.teacher}
    text, unet, decoder = (parts[leaf] for leaf in PARTS)
    networks = from_modules(text, unet, decoder, settings, pixels=sheet.size)
    if run is not None:
        call = _on_arrays(run, batch)
        networks = replace(networks, unet=call) if sheet.part == "unet" else replace(networks, text_encoder=call)
    way = Way(solver=solver, steps=steps, guidance=guidance, seed=sheet.seed)
    found = draw_each(sheet.prompts, networks, settings, way)
    if found.broken and run is None:
        raise UserError(f"data.drawn: the uncompressed model itself does not draw {found.broken[0]}")
    return torch.from_numpy(found.images), torch.from_numpy(found.latents)


def _on_arrays(run: Callable[..., torch.Tensor], batch: int) -> Callable[..., np.ndarray]:
    def call(*arrays: np.ndarray) -> np.ndarray:
        tensors = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
        return outputs(run, tensors, batch).numpy()

    return call
