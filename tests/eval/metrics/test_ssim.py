import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.errors import EvalError
from eval.metrics import ssim


@pytest.fixture(scope="module")
def pairs(photographs, noisy):
    images = photographs(3, 48)
    return images, noisy(images, 0.08)


def test_equals_scikit_image(pairs):
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    expected = [
        metrics.structural_similarity(
            np.asarray(a.double()),
            np.asarray(b.double()),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(*pairs, strict=True)
    ]
    assert ssim.ssim(*pairs).tolist() == pytest.approx(expected, abs=1e-6)


def test_equals_torchmetrics_where_the_window_lies_inside(pairs):
    """Its mean also takes windows over a mirrored border; its map, cut to the others, must agree."""
    functional = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    _, full = functional.structural_similarity_index_measure(
        *pairs, data_range=1.0, reduction="none", return_full_image=True
    )
    expected = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    assert ssim.ssim(*pairs).tolist() == pytest.approx(expected.tolist(), abs=2e-5)


def by_windows(x, y):
    """Eq. (13) of the paper, window by window, for one channel."""
    offsets = np.arange(11) - 5
    one_axis = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(one_axis, one_axis) / np.outer(one_axis, one_axis).sum()
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            cov = (weights * (a - mean_a) * (b - mean_b)).sum()
            found.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * cov + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return np.mean(found)


def test_equals_the_definition(pairs):
    a, b = (images[:1, :, :16, :14] for images in pairs)
    expected = np.mean([by_windows(a[0, c].double().numpy(), b[0, c].double().numpy()) for c in range(3)])
    assert ssim.ssim(a, b).item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(11, 20), width=st.integers(11, 20), seed=st.integers(0, 2**31))
def test_is_symmetric_bounded_and_1_for_itself(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 2, 3, height, width, generator=generator)
    found = ssim.ssim(a, b)
    assert torch.allclose(found, ssim.ssim(b, a), atol=1e-6)
    assert (found.abs() < 1).all()
    assert ssim.ssim(a, a).tolist() == [1.0, 1.0]


def test_falls_with_noise(photographs, noisy):
    images = photographs(2)
    values = torch.stack([ssim.measure(images, noisy(images, sigma)) for sigma in (0.01, 0.03, 0.1, 0.3)])
    assert (values.diff(dim=0) < 0).all()


def test_a_picture_smaller_than_the_window_is_refused():
    with pytest.raises(EvalError, match="10x20 pixels; this metric needs 11"):
        ssim.ssim(torch.rand(1, 3, 10, 20), torch.rand(1, 3, 10, 20))
