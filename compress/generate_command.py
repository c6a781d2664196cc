"""`mdcompress generate`: a picture from words."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from compress.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from compress.generation import Leaf, Model
    from compress.sampling.generator import Generated, Way

Part = Annotated[str | None, Parameter(negative="")]
SHOWN_AFTER = 2.0  # seconds after which progress is drawn


def generate(
    prompt: str,
    *,
    out: Path,
    model: str = "md-tiny",
    text_encoder: Part = None,
    unet: Part = None,
    decoder: Part = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: Literal["dpm_solver", "ddim"] | None = None,
    seed: int = 0,
    pixels: int | None = None,
) -> int:
    """Draw a picture from words, by torch variants or by exported files alone.

    Parameters
    ----------
    prompt
        What to draw.
    out
        The picture, a .png file.
    model
        A preset, or a folder with tokenizer.json, scheduler.json, latents.json and the three parts.
    text_encoder
        Another text encoder: a preset, a variant's folder, or an exported file (.onnx, .ort, .tflite, .openvino, .pte).
    unet
        Another UNet, likewise.
    decoder
        Another decoder, likewise.
    steps
        Calls of the UNet; the model's own number where left out.
    guidance
        How strongly the words count; 1 is not at all beyond the UNet's own, and halves the work.
    solver
        dpm_solver (10 to 20 steps) or ddim.
    seed
        Another seed, another picture.
    pixels
        Height and width.
    """
    from compress import generation
    from compress.sampling.generator import Way

    _check(prompt, out)
    given: dict[Leaf, str | None] = {"text_encoder": text_encoder, "unet": unet, "decoder": decoder}
    opened = generation.open_model(model, given, pixels=pixels, threads=generation.threads_here())
    usual = opened.usual
    way = Way(
        solver=solver or usual.solver,
        steps=usual.steps if steps is None else steps,
        guidance=usual.guidance if guidance is None else guidance,
        seed=seed,
    )
    started = time.monotonic()
    made = _drawn(prompt, opened, way)
    _save(made.images[0], out)
    seconds = time.monotonic() - started
    for note in (*opened.notes, *made.notes):
        _say(f"note: {note}", stderr=True)
    side = made.images.shape[-1]
    how = f"{way.steps} steps of {way.solver}, guidance {way.guidance:g}, seed {seed}"
    _say(f"{out}: {side}x{side}, {how}, {seconds:.1f} s")
    for leaf, where in opened.parts.items():
        _say(f"  {leaf}: {where}")
    return 0


def _check(prompt: str, out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: pictures are written as PNG; give a name that ends in .png")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is no folder")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError("the prompt is not valid UTF-8; check the terminal's encoding") from error


def _drawn(prompt: str, opened: "Model", way: "Way") -> "Generated":
    from compress import drawing, generation
    from compress.runs import Event

    began = time.monotonic()
    with drawing.Drawer(drawing.console(stderr=True)) as drawer:

        def told(done: int, total: int) -> None:
            if time.monotonic() - began > SHOWN_AFTER:
                drawer(Event(kind="progress", name="drawing", text="UNet", done=done, total=total))

        return generation.draw(prompt, opened, way, told)


def _save(pixels: "np.ndarray", out: Path) -> None:
    import numpy as np
    from PIL import Image

    from compress.files import write_atomically

    rows = (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    write_atomically(out, lambda place: Image.fromarray(rows).save(place, format="png"))


def _say(text: str, *, stderr: bool = False) -> None:
    from compress import drawing

    drawing.console(stderr=stderr).print(text, highlight=False, markup=False, soft_wrap=True)
