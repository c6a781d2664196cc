"""Photographs for calibration, evaluation and training, from packages that are installed anyway or from any folder.

`photographs` are colour photographs that the scikit-image and scikit-learn wheels carry: no download. Each photograph
is on one side only. Everything here is deterministic; an ImageSet and a CropSampler say by digest what they hold.
"""

import hashlib
import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from calibration.decode import decode
from calibration.errors import DataError
from calibration.folder import Picture, SkippedFile, Split, gather, named

PHOTOGRAPHS = "photographs"
INSTALL = "pip install scikit-image scikit-learn"

# Looked at one by one. Left out: the retina scan (soft: 49 dB after halving and doubling, the others 23 to 34), the
# Hubble deep field (points on black, unlike any photograph asked of a phone) and the right view of the same motorcycle.
FILES: dict[Split, tuple[str, ...]] = {
    "calibration": (
        "skimage/data/chelsea.png",  # a cat: fur, eyes
        "sklearn/datasets/images/flower.jpg",  # petals before soft dark leaves
        "skimage/data/motorcycle_left.png",  # metal, clutter, hard edges
        "skimage/data/rocket.jpg",  # night sky, lamps, lattice masts
        "skimage/data/ihc.png",  # stained tissue: fine texture on white
    ),
    "evaluation": (
        "skimage/data/astronaut.png",  # a person: skin, hair, cloth, glare
        "sklearn/datasets/images/china.jpg",  # architecture, water, haze, leaves, sky
        "skimage/data/coffee.png",  # glazed china on wood grain
    ),
}

SCALES = tuple(2 ** (-k / 2) for k in range(5))  # 1 down to 1/4
LARGEST_OVERLAP = 1 / 3  # of a crop's side, between neighbours of one scale

SAMPLED_FILES = 256  # of a folder: at most 600 MB of photographs of long side 1024
LONG_SIDE = (320, 1024)
GAIN = (0.8, 1.1)
SATURATION = (0.7, 1.3)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet:
    """Square pictures in [0, 1], where each came from, and a digest of pixels, names and shape."""

    images: Float[Tensor, "n 3 size size"]
    names: tuple[str, ...]  # "astronaut@0.50x+256+0": file, scale, left, top; of a folder the file names
    digest: str
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CropSampler:
    """Whole photographs (uint8) from which training crops are cut."""

    photographs: tuple[Picture, ...]
    digest: str
    skipped: tuple[SkippedFile, ...] = ()
    notes: tuple[str, ...] = ()

    def crops(self, step: int, batch: int, pixels: int, seed: int) -> Float[Tensor, "batch 3 pixels pixels"]:
        """Random crops in [0, 1], the same bits for the same (seed, step) whatever came before.

        Each is cut from a photograph shrunk to a random long side (320 to 1024, log-uniform, never enlarged), flipped
        and turned, with a little change of brightness and saturation.

        Raises:
            DataError: no photograph has `pixels` on its short side.
        """
        usable = [p.pixels for p in self.photographs if min(p.pixels.shape[:2]) >= pixels]
        if not usable:
            largest = max(min(p.pixels.shape[:2]) for p in self.photographs)
            raise DataError(
                f"crops of {pixels} pixels asked, the largest that fits is {largest}; ask for smaller crops"
            )
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(len(usable), size=batch)
        cut = np.stack([_random_crop(usable[index], pixels, rng) for index in chosen])
        crops = torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255
        gain = torch.from_numpy(rng.uniform(*GAIN, (batch, 1, 1, 1))).float()
        saturation = torch.from_numpy(rng.uniform(*SATURATION, (batch, 1, 1, 1))).float()
        grey = crops.mean(dim=1, keepdim=True)
        return ((grey + (crops - grey) * saturation) * gain).clamp(0, 1).contiguous()


def load(source: str, *, split: Split, count: int, size: int) -> ImageSet:
    """`count` square pictures of `size` pixels from one side of a source.

    Args:
        source: "photographs", or the path of a folder. The photographs give crops at scales from 1 down to 1/4, one
            photograph after the other in turn, neighbours overlapping by at most a third. A folder gives each file
            once, by name: the largest centred square, shrunk; its files are split by content (see calibration.folder).
        split: "calibration" or "evaluation"; no photograph is in both.
        count: How many.
        size: Pixels per side.

    Raises:
        DataError: too few pictures, a folder that is missing, empty or mostly broken, or the packages are missing.
    """
    if count < 1 or size < 8:
        raise DataError(f"count {count} and size {size} asked; count must be at least 1 and size at least 8")
    if source == PHOTOGRAPHS:
        return _image_set(_cropped(_built_in(split), split, count, size))
    found = gather(Path(source).expanduser(), split, most=count, prepare=lambda pixels: _centre_square(pixels, size))
    if len(found.pictures) < count:
        left_out = f"; left out: {named(found.skipped)}" if found.skipped else ""
        raise DataError(
            f"{source} has {len(found.pictures)} usable pictures for {split}, {count} asked (a third of the files is "
            f"for evaluation, the rest for calibration); lower the count or add pictures{left_out}"
        )
    return _image_set(found.pictures, found.skipped, found.notes)


def sampler(source: str, split: Split) -> CropSampler:
    """The photographs of one split, whole, for training crops.

    Of a folder at most 256 files are held, shrunk to a long side of 1024, which no crop exceeds.

    Raises:
        DataError: a folder that is missing, empty, mostly broken or without a picture for this split, or the packages
            are missing.
    """
    if source == PHOTOGRAPHS:
        photographs = _built_in(split)
        return CropSampler(photographs=photographs, digest=_digest(photographs))
    found = gather(Path(source).expanduser(), split, most=SAMPLED_FILES, prepare=_within_long_side)
    if not found.pictures:
        raise DataError(f"{source} has no usable picture for {split}; add pictures")
    return CropSampler(
        photographs=found.pictures, digest=_digest(found.pictures), skipped=found.skipped, notes=found.notes
    )


def _built_in(split: Split) -> tuple[Picture, ...]:
    return tuple(Picture(name=Path(file).stem, pixels=_from_wheel(file)) for file in FILES[split])


def _from_wheel(file: str) -> np.ndarray:
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)  # finds the package without importing it, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"source 'photographs' needs {package}: {INSTALL}; or give a folder of pictures")
    path = Path(spec.submodule_search_locations[0]) / rest
    try:
        return decode(path.read_bytes()).pixels
    except OSError as error:
        raise DataError(f"{path} is missing or cannot be read: {INSTALL}; or give a folder of pictures") from error


def _cropped(photographs: tuple[Picture, ...], split: Split, count: int, size: int) -> tuple[Picture, ...]:
    windows = [_windows(photograph, size) for photograph in photographs]
    in_turn = [w for row in itertools.zip_longest(*windows) for w in row if w is not None]
    if len(in_turn) < count:
        raise DataError(
            f"the built-in photographs give at most {len(in_turn)} {split} crops of {size} pixels, {count} asked; "
            "lower the count or the size, or give a folder of pictures"
        )
    return tuple(_cut(window, size) for window in in_turn[:count])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    photograph: Picture
    scale: float
    left: int
    top: int


def _windows(photograph: Picture, size: int) -> list[_Window]:
    """Where crops lie: the widest view first, then closer ones."""
    height, width = photograph.pixels.shape[:2]
    return [
        _Window(photograph=photograph, scale=scale, left=left, top=top)
        for scale in reversed(SCALES)
        for top in _offsets(round(height * scale), size)
        for left in _offsets(round(width * scale), size)
    ]


def _offsets(length: int, size: int) -> list[int]:
    """As many evenly spaced crops as fit in a length with at most a third of overlap."""
    if length < size:
        return []
    count = 1 + int((length - size) / (size * (1 - LARGEST_OVERLAP)))
    spare = length - size
    return [spare // 2] if count == 1 else [round(spare * k / (count - 1)) for k in range(count)]


def _cut(window: _Window, size: int) -> Picture:
    pixels, left, top = window.photograph.pixels, window.left, window.top
    height, width = pixels.shape[:2]
    shrunk = _resized(pixels, round(width * window.scale), round(height * window.scale))
    name = f"{window.photograph.name}@{window.scale:.2f}x+{left}+{top}"
    return Picture(name=name, pixels=shrunk[top : top + size, left : left + size])


def _resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic, which Pillow widens when shrinking, so nothing aliases."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _centre_square(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    side = min(height, width)
    if side < size:
        raise DataError(f"{width}x{height} pixels, its short side is below {size}")
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(pixels[top : top + side, left : left + side], size, size)


def _within_long_side(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, LONG_SIDE[1] / max(height, width))
    return _resized(pixels, max(1, round(width * scale)), max(1, round(height * scale)))


def _random_crop(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    long_side = np.exp(rng.uniform(*np.log(LONG_SIDE)))
    shrink = min(max(1.0, max(height, width) / long_side), min(height, width) / size)
    side = size * shrink
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    box = (left, top, min(left + side, width), min(top + side, height))
    crop = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box)
    turned = np.rot90(np.asarray(crop), int(rng.integers(4)))
    return turned[:, ::-1] if rng.integers(2) else turned


def _image_set(
    pictures: tuple[Picture, ...], skipped: tuple[SkippedFile, ...] = (), notes: tuple[str, ...] = ()
) -> ImageSet:
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return ImageSet(
        images=(pixels.permute(0, 3, 1, 2).float() / 255).contiguous(),
        names=tuple(picture.name for picture in pictures),
        digest=_digest(pictures),
        skipped=skipped,
        notes=notes,
    )


def _digest(pictures: tuple[Picture, ...]) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.name}\0{picture.pixels.shape}\0".encode())
        digest.update(np.ascontiguousarray(picture.pixels).data)
    return digest.hexdigest()
