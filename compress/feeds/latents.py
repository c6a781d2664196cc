"""What a decoder decodes: photographs through the encoder of the same family."""

from collections.abc import Mapping

import torch

from calibration import images
from compress.components import kind_of
from compress.errors import UserError
from compress.feeds import Load, Source
from compress.feeds.pictures import digests, notes, photographs
from compress.nn.batches import outputs
from compress.nn.structure import example_inputs
from compress.records import Arch, Feed, Inputs, Samples

__all__ = ["COMPANIONS", "OPTIONAL", "check", "digests", "feed", "notes"]

COMPANIONS = ("encoder",)
OPTIONAL = ()
CHECKED_PIXELS = 64  # side of the image with which the two components are tried on each other


def check(arch: Arch, companions: Mapping[str, Arch]) -> None:
    """Refuse an encoder whose latents the decoder does not take.

    Raises:
        UserError: both shapes.
    """
    encoder = companions["encoder"]
    kind = kind_of(encoder.kind)
    with torch.device("meta"):
        module = kind.build(encoder.config)
    given = tuple(module(*example_inputs(kind, encoder.config, CHECKED_PIXELS)).shape)
    wanted = kind_of(arch.kind).input_shape(arch.config, CHECKED_PIXELS)
    if given != wanted:
        raise UserError(f"the encoder makes inputs of shape {list(given)}, the decoder takes {list(wanted)}")


def feed(source: Source, load: Load) -> Feed:
    """Latents of photographs; training crops are drawn by the seed and the step."""
    data, seed, encoder = source.data, source.seed, load("encoder")
    sampler = images.sampler(data.calibration.source, "calibration")

    def calibration() -> Inputs:
        return (outputs(encoder, (photographs(data, "calibration").images,)),)

    def sample(step: int, batch: int, pixels: int) -> Inputs:
        return (outputs(encoder, (sampler.crops(step, batch, pixels, seed),), batch),)

    def evaluation() -> Samples:
        found = photographs(data, "evaluation")
        latents = outputs(encoder, (found.images,))
        return Samples(names=found.names, inputs=(latents,), truth=found.images, digest=found.digest)

    return Feed(calibration=calibration, sample=sample, evaluation=evaluation)
