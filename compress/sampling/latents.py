"""Latents between the networks: where noise comes from, the scale the UNet sees, and what must never reach a decoder.

Source: Stable Diffusion's one factor (0.18215) makes its latents have variance 1; here every channel has a shift and a
scale of its own, so that each has mean 0 and variance 1 over the training pictures.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from compress.errors import UserError
from compress.files import read_json, write_json


class NotFinite(UserError):
    """A network made NaN or Inf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentScale:
    """Mean and standard deviation of each channel of the encoder's latents."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} deviations; one of each per channel")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("means must be finite, deviations finite and above 0")

    def normalised(self, latents: Any) -> Any:
        """What the UNet sees of the encoder's latents [n, z, h, w]; any kind of array."""
        return (latents - self._row(self.mean, latents)) / self._row(self.std, latents)

    def restored(self, latents: Any) -> Any:
        """The inverse of `normalised`: what the decoder takes."""
        return latents * self._row(self.std, latents) + self._row(self.mean, latents)

    def _row(self, values: tuple[float, ...], like: Any) -> Any:
        if like.shape[1] != len(values):
            raise UserError(
                f"latents of {like.shape[1]} channels, but the scale of latents.json has {len(values)}: the VAE, the "
                "UNet and latents.json must come from one training"
            )
        row = np.asarray(values, dtype=np.float32)[:, None, None]
        return row if isinstance(like, np.ndarray) else like.new_tensor(row)


def save(scale: LatentScale, path: Path) -> None:
    """Write latents.json."""
    write_json(path, asdict(scale))


def load(path: Path) -> LatentScale:
    """Read latents.json.

    Raises:
        UserError: missing, or not one mean and one deviation per channel.
    """
    data = read_json(path)
    lists = isinstance(data, dict) and set(data) == {"mean", "std"} and all(isinstance(v, list) for v in data.values())
    if not lists:
        raise UserError(f"{path}: needs exactly the lists mean and std, one number per latent channel")
    try:
        return LatentScale(mean=tuple(map(float, data["mean"])), std=tuple(map(float, data["std"])))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error


def noise(shape: tuple[int, int, int], seeds: Sequence[int]) -> Float[np.ndarray, "n z h w"]:
    """Standard normal latents, one generator per picture: the same seed gives the same picture in any batch."""
    return np.stack([np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds])


def require_finite(latents: Any, where: str, *, count: int | None = None) -> Any:
    """The latents, unless one of them is NaN or infinite; where pictures come twice, `count` of them are told apart.

    Raises:
        NotFinite: names the pictures; a decoder would show them black.
    """
    sums = latents.reshape(latents.shape[0], -1).sum(1)
    broken = sorted({i % (count or len(sums)) for i, total in enumerate(sums) if not math.isfinite(float(total))})
    if broken:
        raise NotFinite(
            f"{where}: the latents of picture {', '.join(map(str, broken))} are not finite; the weights or the scale "
            "of the latents do not fit this model (float16 overflow is the usual cause), or guidance is far too strong"
        )
    return latents
