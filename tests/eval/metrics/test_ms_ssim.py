import pytest
import torch

from eval.errors import EvalError
from eval.metrics import ms_ssim


@pytest.fixture(scope="module")
def torchmetrics_ms_ssim():
    return pytest.importorskip("torchmetrics.functional.image").multiscale_structural_similarity_index_measure


def each(theirs, reference, candidate):
    return [
        theirs(candidate[i : i + 1].double(), reference[i : i + 1].double(), data_range=1.0).item()
        for i in range(len(reference))
    ]


@pytest.mark.parametrize("size", [176, 193])
def test_equals_torchmetrics_with_the_range_given(torchmetrics_ms_ssim, photographs, noisy, size):
    images = photographs(2, size)
    for sigma in (0.02, 0.2):
        other = noisy(images, sigma)
        expected = each(torchmetrics_ms_ssim, images, other)
        assert ms_ssim.ms_ssim(images, other).tolist() == pytest.approx(expected, abs=2e-5)


def test_the_seeded_example_of_torchmetrics(torchmetrics_ms_ssim):
    """The example of its documentation: rand([3, 3, 256, 256]) of seed 42 against 0.75 of it gives 0.9628."""
    preds = torch.rand([3, 3, 256, 256], generator=torch.Generator().manual_seed(42))
    assert ms_ssim.ms_ssim(preds * 0.75, preds).mean().item() == pytest.approx(0.9628, abs=1e-4)
    assert torchmetrics_ms_ssim(preds, preds * 0.75, data_range=1.0).item() == pytest.approx(0.9628, abs=1e-4)


def test_an_inverted_picture_is_0_and_not_nan(photographs):
    images = photographs(1, 176)
    assert ms_ssim.ms_ssim(images, 1 - images).item() == 0.0


def test_a_small_picture_is_refused(photographs):
    images = photographs(1, 160)
    with pytest.raises(EvalError, match="160x160 pixels; this metric needs 176"):
        ms_ssim.ms_ssim(images, images)
