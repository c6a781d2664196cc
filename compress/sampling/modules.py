"""Torch modules as the networks that the generator calls."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.errors import UserError
from compress.sampling.generator import Networks, Settings

PATCH = 8  # image pixels per latent on each side


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
    problems = _misfits(text_encoder, unet, decoder, settings)
    if problems:
        raise UserError("these parts are not of one model: " + "; ".join(problems))

    def on_arrays(module: nn.Module) -> Callable[..., np.ndarray]:
        device = next(module.parameters()).device

        def call(*arrays: np.ndarray) -> np.ndarray:
            tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays]
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                return module(*tensors).float().cpu().numpy()

        return call

    config: Any = unet.config
    return Networks(
        text_encoder=on_arrays(text_encoder),
        unet=on_arrays(unet),
        decoder=on_arrays(decoder),
        latent_shape=(config.in_channels, pixels // PATCH, pixels // PATCH),
    )


def _misfits(text_encoder: nn.Module, unet: nn.Module, decoder: nn.Module, settings: Settings) -> list[str]:
    text: Any = text_encoder.config
    net: Any = unet.config
    picture: Any = decoder.config
    channels, words = len(settings.scale.mean), settings.tokenizer
    pairs = [
        ("tokens of the tokenizer", words.length, "positions of the text encoder", text.positions),
        ("width of the text encoder", text.width, "context width of the UNet", net.context_width),
        ("latent channels in latents.json", channels, "channels of the UNet", net.in_channels),
        ("channels in", net.in_channels, "channels out of the UNet", net.out_channels),
        ("latent channels in latents.json", channels, "channels of the decoder", picture.latent_channels),
    ]
    found = [f"{mine} {a}, {theirs} {b}" for mine, a, theirs, b in pairs if a != b]
    if words.vocabulary > text.vocabulary:
        found.append(f"the tokenizer has {words.vocabulary} entries, the text encoder {text.vocabulary}")
    return found
