"""Torch modules as the networks that the generator calls."""

from typing import Any

import numpy as np
import torch
from torch import nn

from compress.sampling.generator import Networks, Settings
from compress.sampling.parts import Call, DecoderFacts, Part, TextFacts, UNetFacts, assemble

RUNTIME = "torch"


def from_modules(
    text_encoder: nn.Module,
    unet: nn.Module,
    decoder: nn.Module,
    settings: Settings,
    *,
    pixels: int,
    bfloat16: bool = False,
) -> Networks:
    """The networks of three modules, for square pictures of `pixels`; with bfloat16 under autocast (faster, coarser).

    Raises:
        UserError: the parts do not fit each other or the settings; says all that does not.
    """
    text = text_part(text_encoder, bfloat16=bfloat16)
    middle, last = unet_part(unet, bfloat16=bfloat16), decoder_part(decoder, bfloat16=bfloat16)
    return assemble(text, middle, last, settings, pixels)


def text_part(module: nn.Module, *, bfloat16: bool = False) -> Part[TextFacts]:
    """A text encoder."""
    config: Any = module.config
    facts = TextFacts(positions=config.positions, vocabulary=config.vocabulary, width=config.width)
    return Part(call=on_arrays(module, bfloat16=bfloat16), facts=facts, runtime=RUNTIME)


def unet_part(module: nn.Module, *, bfloat16: bool = False) -> Part[UNetFacts]:
    """A UNet."""
    config: Any = module.config
    facts = UNetFacts(channels=config.in_channels, out=config.out_channels, context=config.context_width)
    return Part(call=on_arrays(module, bfloat16=bfloat16), facts=facts, runtime=RUNTIME)


def decoder_part(module: nn.Module, *, bfloat16: bool = False) -> Part[DecoderFacts]:
    """A decoder; one of your own tells nothing of its channels."""
    config: Any = getattr(module, "config", None)
    facts = DecoderFacts(channels=getattr(config, "latent_channels", None))
    return Part(call=on_arrays(module, bfloat16=bfloat16), facts=facts, runtime=RUNTIME)


def on_arrays(module: nn.Module, *, bfloat16: bool) -> Call:
    """A module as a function on arrays."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def call(*arrays: np.ndarray) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays]
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            made: np.ndarray = module(*tensors).float().cpu().numpy()
        return made

    return call
