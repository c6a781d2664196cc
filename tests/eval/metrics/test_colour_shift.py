import numpy as np
import pytest
import torch

from eval.metrics import colour_shift


def test_equals_scikit_image(photographs, noisy):
    color = pytest.importorskip("skimage.color")
    images = photographs(2, 64)
    other = (noisy(images, 0.1) * torch.tensor([1.0, 0.9, 1.1])[:, None, None]).clamp(0, 1)

    def areas(batch):
        return batch.double().numpy().reshape(2, 3, 4, 16, 4, 16).mean((3, 5)).transpose(0, 2, 3, 1)

    expected = color.deltaE_cie76(color.rgb2lab(areas(images)), color.rgb2lab(areas(other))).mean((1, 2))
    assert colour_shift.colour_shift(images, other).tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_black_against_white_is_100_and_detail_is_no_colour(photographs):
    black = torch.zeros(1, 3, 32, 32)
    assert colour_shift.colour_shift(black, black + 1).item() == pytest.approx(100.0, abs=1e-2)
    images = 0.2 + 0.6 * photographs(2)
    sign = ((torch.arange(64)[:, None] + torch.arange(64)) % 2) * 2.0 - 1
    assert colour_shift.colour_shift(images, images + 0.1 * sign).max() < 1e-4


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_swapped_channels_and_casts_are_seen(photographs, order):
    images = photographs(3)
    assert colour_shift.colour_shift(images, images[:, list(order)]).min() > 5
    cast = [
        colour_shift.colour_shift(images, (images + torch.tensor([a, 0, -a])[:, None, None]).clamp(0, 1)).mean().item()
        for a in (0.01, 0.03, 0.1)
    ]
    assert cast == sorted(cast)
    assert np.isfinite(cast).all()
