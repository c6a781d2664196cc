"""What an image encoder encodes: photographs as they are."""

from collections.abc import Mapping

from calibration import images
from calibration.folder import Split
from compress.feeds import Load, Source
from compress.records import Arch, Feed, Inputs, Samples
from compress.written import Data

COMPANIONS = ()
OPTIONAL = ()


def digests(source: Source) -> dict[str, str]:
    """SHA-256 of the photographs, by what they are for."""
    data = source.data
    return {
        "calibration": photographs(data, "calibration").digest,
        "sampler": images.sampler(data.calibration.source, "calibration").digest,
        "evaluation": photographs(data, "evaluation").digest,
    }


def check(arch: Arch, companions: Mapping[str, Arch]) -> None:
    """Nothing else is needed."""


def notes(source: Source) -> tuple[str, ...]:
    """Nothing stands in for anything."""
    return ()


def feed(source: Source, load: Load) -> Feed:
    """Photographs; training crops are drawn by the seed and the step."""
    data, seed = source.data, source.seed
    sampler = images.sampler(data.calibration.source, "calibration")

    def calibration() -> Inputs:
        return (photographs(data, "calibration").images,)

    def sample(step: int, batch: int, pixels: int) -> Inputs:
        return (sampler.crops(step, batch, pixels, seed),)

    def evaluation() -> Samples:
        found = photographs(data, "evaluation")
        return Samples(names=found.names, inputs=(found.images,), truth=None, digest=found.digest)

    return Feed(calibration=calibration, sample=sample, evaluation=evaluation)


def photographs(data: Data, split: Split) -> images.ImageSet:
    """The photographs of one side."""
    wanted = data.calibration if split == "calibration" else data.evaluation
    return images.load(wanted.source, split=split, count=wanted.count, size=wanted.size)
