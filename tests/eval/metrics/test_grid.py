import math

import pytest
import torch

from eval.metrics import grid


def blocks(count, size, amplitude, seed=0):
    """Patches of 8x8, each with a flat offset of its own."""
    offsets = torch.randn(count, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(seed))
    return amplitude * offsets.repeat_interleave(8, 2).repeat_interleave(8, 3)


def checkers(size, period=2):
    index = torch.arange(size) // (period // 2)
    return ((index[:, None] + index) % 2) * 2.0 - 1


def middle(photographs, count=3, size=128):
    return 0.3 + 0.4 * photographs(count, size)


@pytest.mark.parametrize("amplitude", [1, 2, 3])
def test_a_known_amplitude_is_found(photographs, amplitude):
    images = middle(photographs, size=256)
    checkered = images + amplitude / 255 * checkers(256)
    assert grid.grid(images, checkered).tolist() == pytest.approx([amplitude] * 3, rel=0.01)
    blocked = images + blocks(3, 256, amplitude / 255)
    assert grid.grid(images, blocked).tolist() == pytest.approx([amplitude] * 3, rel=0.1)


def test_equals_loops(photographs, noisy):
    """The definition in plain Python on one small picture."""
    images = middle(photographs, 1, 24)
    other = noisy(images, 0.02) + 0.01 * checkers(24, 4)
    error = (other - images).double()[0]
    cut = 16 / 255
    pattern = 0.0
    for c in range(3):
        patches = [error[c, 8 * r : 8 * r + 8, 8 * q : 8 * q + 8] for r in range(3) for q in range(3)]
        patches = [(patch - patch.mean()).clamp(-cut, cut) for patch in patches]
        for y in range(8):
            for x in range(8):
                values = [patch[y, x].item() for patch in patches]
                mean = sum(values) / 9
                variance = sum((v - mean) ** 2 for v in values) / 8
                pattern += (mean**2 - variance / 9) / (3 * 64)
    steps = 0.0
    for picture in (error, error.transpose(1, 2)):
        on, off = [], []
        for c in range(3):
            for y in range(24):
                for x in range(23):
                    step = min(abs((picture[c, y, x + 1] - picture[c, y, x]).item()), cut) ** 2
                    (on if x % 8 == 7 else off).append(step)
        steps += sum(on) / len(on) - sum(off) / len(off)
    expected = 255 * math.sqrt(max(pattern, 0) + max(steps / 4, 0))
    assert grid.grid(images, other).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def real():
    """Crops of three photographs, whatever their content and its alignment."""
    data = pytest.importorskip("skimage.data")
    crops = [getattr(data, name)()[17:273, 101:357] for name in ("astronaut", "coffee", "chelsea")]
    return torch.stack([torch.from_numpy(crop.copy()).permute(2, 0, 1) for crop in crops]).float() / 255


def test_content_and_other_faults_are_no_grid(real, noisy):
    images = real
    for other in (
        noisy(images, 0.02),
        torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False),
        images**1.1,
        0.9 * images,
        images.roll(1, 3),
    ):
        assert grid.grid(images, other).max() < 1.2
    fence = ((torch.arange(256) % 8) < 1).float() * 0.5 + 0.25 + 0 * images  # a picture with a grid of its own
    assert grid.grid(fence, fence).max() == 0.0
    assert grid.grid(fence, noisy(fence, 0.01)).max() < 0.6


def test_blocks_off_the_grid_count_for_less_and_partial_patches_are_left_out(photographs):
    images = middle(photographs, size=256)
    pattern = blocks(3, 256, 3 / 255)
    on = grid.grid(images, images + pattern)
    off = grid.grid(images, images + pattern.roll(4, 3).roll(4, 2))
    assert (off < 0.3 * on).all()
    cut = grid.grid(images[..., :250, :], (images + pattern)[..., :250, :])
    assert cut.tolist() == pytest.approx(grid.grid(images[..., :248, :], (images + pattern)[..., :248, :]).tolist())
