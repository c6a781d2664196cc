"""A tiny text-to-image model in a folder: its parts fit each other, and its settings lie beside them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tiny
import torch

from compress import registry
from compress.components import build, save_variant
from compress.components.text_encoder import TextLayerConfig
from compress.records import Arch, Variant
from compress.sampling import latents, schedule, tokenizer
from compress.sampling.latents import LatentScale
from compress.sampling.schedule import Schedule

LEAVES = ("text_encoder", "unet", "decoder")
SETTINGS = ("tokenizer.json", "scheduler.json", "latents.json", "sampling.json")

_LAYER = TextLayerConfig(heads=3, feed_forward=24)
TEXT = replace(tiny.TEXT, vocabulary=300, positions=5, width=12, head_dim=4, layers=(_LAYER,))


def text_encoder() -> Variant:
    """Five tokens, states of the width that the tiny UNet reads."""
    arch = Arch(kind="text_encoder.text_encoder", config=TEXT)
    return Variant(component="tiny/text_encoder", arch=arch, module=tiny._seeded(build(arch), 0))


def write(folder: Path, captions: Sequence[str], scale: LatentScale) -> Path:
    """unet/, text_encoder/, encoder/ and decoder/, tokenizer, schedule and scale."""
    for variant in (tiny.unet(), text_encoder(), tiny.encoder(), tiny.decoder()):
        save_variant(variant, folder / variant.component.rpartition("/")[2])
    tokenizer.train(captions, vocabulary=300, length=5).save(folder / "tokenizer.json")
    schedule.save(Schedule(), folder / "scheduler.json")
    latents.save(scale, folder / "latents.json")
    return folder


def exported(model: Path, folder: Path, name: str, leaves: Sequence[str] = LEAVES) -> Path:
    """The parts as files of a format, for 32 pixels, beside the settings of `model`."""
    exporter = registry.load(f"export.{name}")
    inputs = {
        "text_encoder": (torch.zeros(1, 5, dtype=torch.int64),),
        "unet": (torch.zeros(1, 8, 4, 4), torch.zeros(1), torch.zeros(1, 5, 12)),
        "decoder": (torch.zeros(1, 8, 4, 4),),
    }
    makers = {"text_encoder": text_encoder, "unet": tiny.unet, "decoder": tiny.decoder}
    for leaf in leaves:
        config = exporter.Config(**({"dynamic": False} if "dynamic" in exporter.Config.model_fields else {}))
        exporter.export(makers[leaf]().module, inputs[leaf], folder / f"{leaf}{exporter.SUFFIX}", config, metadata={})
    for setting in SETTINGS:
        (folder / setting).write_bytes((model / setting).read_bytes())
    return folder
