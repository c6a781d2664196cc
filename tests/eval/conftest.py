"""Synthetic pictures with what photographs have: slow gradients, edges, texture and colour."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def photographs() -> Callable[..., Tensor]:
    """Makes pictures [count, 3, size, size] in [0, 1]."""

    def make(count: int, size: int = 64, *, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)

        def layer(cells: int) -> Tensor:
            noise = torch.rand(count, 3, cells, cells, generator=generator)
            return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)

        edges = (layer(6)[:, :1] > 0.5).float()
        mixed = 0.6 * layer(3) + 0.25 * edges * layer(4) + 0.15 * layer(size // 2)
        return (mixed * torch.tensor([1.0, 0.8, 0.55])[None, :, None, None]).clamp(0, 1)

    return make


@pytest.fixture(scope="session")
def noisy() -> Callable[..., Tensor]:
    """Adds Gaussian noise to pictures and keeps them in [0, 1]."""

    def add(images: Tensor, sigma: float, *, seed: int = 1) -> Tensor:
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return (images + sigma * noise).clamp(0, 1)

    return add
