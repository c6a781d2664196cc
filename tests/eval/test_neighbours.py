import pytest
import torch

from eval.errors import EvalError
from eval.neighbours import ranks

GALLERY = torch.rand(60, 3, 64, 64, generator=torch.Generator().manual_seed(0))
ALL = torch.arange(60)


def test_pictures_of_the_gallery_are_their_own_nearest():
    assert ranks(GALLERY, GALLERY, ALL).tolist() == [0] * 60
    assert ranks(GALLERY.flip(3), GALLERY, ALL).tolist() == [0] * 60


def test_places_by_brute_force():
    made = (GALLERY[:5] + torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))) / 2
    right = torch.tensor([7, 0, 13, 59, 4])

    def distance(a, b):
        blocks = (a - b).reshape(3, 32, 2, 32, 2).mean(dim=(2, 4))
        return float(blocks.square().sum().sqrt())

    for picture, target, place in zip(made, right, ranks(made, GALLERY, right), strict=True):
        nearest = [min(distance(picture, known), distance(picture.flip(2), known)) for known in GALLERY]
        assert int(place) == sum(d < nearest[target] for d in nearest)


def test_a_random_picture_is_seldom_among_the_nearest():
    right = torch.randint(60, (600,), generator=torch.Generator().manual_seed(2))
    made = torch.rand(600, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    share = float((ranks(made, GALLERY, right) < 6).float().mean())
    assert 0.05 < share < 0.16  # 6 of 60


def test_broken_pictures_are_last_and_a_flat_gallery_gives_no_credit():
    made = GALLERY[:3].clone()
    made[1, 0, 5, 5] = float("nan")
    made[2, 0, 5, 5] = float("inf")
    assert ranks(made, GALLERY, ALL[:3]).tolist() == [0, 60, 60]
    flat = torch.full((20, 3, 32, 32), 0.5)
    assert ranks(flat[:2], flat, torch.tensor([0, 5])).tolist() == [19, 19]


def test_what_cannot_be_compared_is_named():
    with pytest.raises(EvalError, match="multiples of 32"):
        ranks(torch.rand(1, 3, 40, 32), GALLERY, ALL[:1])
    with pytest.raises(EvalError, match="gallery of 60"):
        ranks(GALLERY[:1], GALLERY, torch.tensor([60]))
