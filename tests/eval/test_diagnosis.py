"""Broken pictures are named; good variants never are."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import diagnosis

NAMED = {
    "NaN in": lambda x: torch.where(x > 0.5, math.nan, x),
    "Inf in": lambda x: torch.where(x > 0.5, math.inf, x),
    "constant image": lambda x: torch.full_like(x, 0.4),
    r"looks like \[-1, 1\]": lambda x: 2 * x - 1,
    r"looks like 0\.\.255": lambda x: 255 * x,
    "torch.uint8": lambda x: (255 * x).byte(),
    r"\[-1, 1\] cut to": lambda x: (2 * x - 1).clamp(0, 1),
    r"taken for \[-1, 1\]": lambda x: (x + 1) / 2,
    "divided by 255 twice": lambda x: x / 255,
    "shifted by pixels: 3 right$": lambda x: x.roll(3, 2),
    "shifted by pixels: 1 left and 2 down": lambda x: x.roll((2, -1), (1, 2)),
    "channels swapped .BGR": lambda x: x.flip(0),
    "channels swapped .GBR": lambda x: x[[1, 2, 0]],
    "grey": lambda x: (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * x).sum(0).expand(3, -1, -1),
    "inverted": lambda x: 1 - x,
    "transposed": lambda x: x.transpose(1, 2),
    "mirrored": lambda x: x.flip(2),
    "upside down": lambda x: x.flip(1),
    "turned by 180": lambda x: x.flip((1, 2)),
    "gamma 2.2": lambda x: x**2.2,
    "dead channel: green": lambda x: x * torch.tensor([1.0, 0.0, 1.0])[:, None, None],
    "stuck at one colour": lambda x: torch.cat((x[..., :40], 0 * x[..., 40:]), -1),
    "brightness or contrast": lambda x: 0.7 * x,
    "colour cast": lambda x: (x + torch.tensor([0.1, 0, -0.1])[:, None, None]).clamp(0, 1),
}


@pytest.mark.parametrize("text", NAMED)
def test_what_is_broken_is_named(text, photographs):
    original = photographs(1, 80)[0]
    found = diagnosis.suspicion(original, NAMED[text](original))
    assert found is not None
    assert re.search(text, found), found


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), sigma=st.floats(0, 0.06), blur=st.booleans(), gain=st.floats(0.97, 1.03))
def test_a_good_variant_is_never_suspected(photographs, seed, sigma, blur, gain):
    original = photographs(1, 64, seed=seed)[0]
    other = original + sigma * torch.randn(original.shape, generator=torch.Generator().manual_seed(seed))
    if blur:
        other = torch.nn.functional.avg_pool2d(other[None], 3, 1, 1, count_include_pad=False)[0]
    assert diagnosis.suspicion(original, (gain * other).clamp(0, 1)) is None


def test_an_original_that_is_flat_grey_or_symmetric_excuses_its_likes(photographs):
    flat = torch.full((3, 32, 32), 0.5)
    assert diagnosis.suspicion(flat, flat * 0.99) is None
    grey = photographs(1, 64)[0].mean(0).expand(3, -1, -1)
    assert diagnosis.suspicion(grey, grey.clone()) is None
    white = torch.ones(3, 32, 32)
    assert diagnosis.suspicion(white, white) is None
    sky = photographs(1, 64)[0].clone()
    sky[:, :30] = 0.999
    saturated = sky.clone()
    saturated[:, :30] = 1.0
    assert diagnosis.suspicion(sky, saturated) is None


def test_pictures_of_another_are_found(photographs):
    images = list(photographs(4, 64))
    assert diagnosis.another(images, images) == {}
    assert diagnosis.another(images, [images[1], images[0], images[2], images[3]]) == {0: 1, 1: 0}
    assert diagnosis.another(images, [images[0]] * 4) == {1: 0, 2: 0, 3: 0}
    assert diagnosis.another(images, [0.9 * image for image in images]) == {}
