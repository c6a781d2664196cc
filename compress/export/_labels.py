"""What an exported file says of itself: what goes in, what comes out, in which range."""

import inspect
from collections.abc import Mapping
from typing import Literal

from torch import nn

from compress.errors import UserError
from compress.records import Arch, Inputs

Output = Literal["image", "latents", "prediction", "states"]  # what a kind of component makes (`Kind.output`)

INPUTS = {
    "latents": "the diffusion UNet's latents, float32 NCHW; scaling factor and shift are applied inside",
    "images": "RGB pictures, float32 NCHW in [0, 1]",
    "timesteps": "time steps of the noise schedule, float32, one a sample",
    "context": "hidden states of the text encoder, float32 [n, tokens, width]",
    "pooled": "pooled text states, float32 [n, width]",
    "sizes": "original size, crop and target size in pixels, float32 [n, 6]",
    "ids": "token ids, whole numbers, padded to the longest text",
}
OUTPUTS: Mapping[str, str] = {
    "image": "RGB picture, NCHW in [0, 1]",
    "latents": "the diffusion UNet's latents, NCHW; scaling factor and shift are applied inside",
    "prediction": "what the diffusion UNet predicts of the noise, NCHW",
    "states": "hidden states [n, tokens, width] after the final layer norm",
}


def described(arch: Arch, output: Output) -> dict[str, str]:
    """Metadata for a file of this architecture: its kind, its scaling factor and what comes out."""
    of_latents = {
        name: repr(float(getattr(arch.config, name)))
        for name in ("scaling_factor", "shift_factor")
        if isinstance(getattr(arch.config, name, None), int | float)
    }
    return {"kind": arch.kind, "output": OUTPUTS[output], **of_latents}


def input_names(module: nn.Module, example: Inputs) -> list[str]:
    """The parameters of the module's forward pass, in order: "latents", or "latents", "timesteps", "context"."""
    return list(inspect.signature(module.forward).parameters)[: len(example)]


def with_inputs(metadata: Mapping[str, str], names: list[str]) -> dict[str, str]:
    """Metadata, sorted by key, with what is known of each input."""
    known = {f"input.{name}": INPUTS[name] for name in names if name in INPUTS}
    return dict(sorted({**known, **metadata}.items()))


def require_image(output: Output, option: str) -> None:
    """Refuse an option that only means something for pictures.

    Raises:
        UserError: the component does not make pictures.
    """
    if output != "image":
        raise UserError(f"{option} is for components that make pictures; this one makes {output}: leave it out")
