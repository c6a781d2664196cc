"""What every image metric promises, whichever files there are."""

import math

import pytest
import torch

from eval import compare, metrics
from eval.errors import EvalError

IMAGE_METRICS = [name for name in metrics.names() if metrics.is_image_metric(name)]


def nets(name):
    return ["st-alex"] if metrics.get(name).NEEDS_NET else [None]


def smallest(name):
    return max(64, getattr(metrics.get(name), "SMALLEST", 0))


def best_value(module):
    return module.RANGE[1] if module.HIGHER_IS_BETTER else module.RANGE[0]


def checkered(images):
    """Every other pixel brighter, every other darker: what each metric of images has to see."""
    rows, columns = (torch.arange(side) for side in images.shape[2:])
    sign = ((rows[:, None] + columns) % 2) * 2.0 - 1
    return (images + 0.3 * sign * torch.tensor([1.0, 0.6, 0.8])[:, None, None]).clamp(0, 1)


CASES = [(name, net) for name in IMAGE_METRICS for net in nets(name)]
each = pytest.mark.parametrize(("name", "net"), CASES)


def test_the_directory_is_the_registry():
    assert set(metrics.names()) >= {
        "psnr",
        "ssim",
        "ms_ssim",
        "lpips",
        "sqnr",
        "cosine",
        "latency",
        "size",
        "peak_memory",
    }
    assert set(IMAGE_METRICS) >= {"psnr", "ssim", "ms_ssim", "lpips", "grid", "clip_rate", "colour_shift"}
    with pytest.raises(
        EvalError, match=r"no metric 'pnsr'; did you mean 'psnr' or 'sqnr'\? known: clip_rate, colour_shift, cosine"
    ):
        metrics.get("pnsr")
    with pytest.raises(EvalError):
        metrics.get("_images")


@pytest.mark.parametrize("name", metrics.names())
def test_declares_what_it_is(name):
    module = metrics.get(name)
    assert isinstance(module.UNIT, str)
    assert isinstance(module.HIGHER_IS_BETTER, bool)
    assert isinstance(module.NEEDS_NET, bool)
    assert module.RANGE[0] < module.RANGE[1]
    assert module.TAKES in ("images", "tensors", "latents", "asked", "cost")
    assert hasattr(module, "measure") == (module.TAKES != "cost")
    assert 10 < len(module.DEFINITION) <= 120
    assert "\n" not in module.DEFINITION
    for heading in ("Source:", "Differs:", "Cost:"):
        assert heading in module.__doc__


@each
def test_an_image_scores_the_best_value_against_itself(name, net, photographs):
    module = metrics.get(name)
    images, best = photographs(2, smallest(name)), best_value(module)
    assert module.measure(images, images, net=net).tolist() == pytest.approx([best, best], abs=1e-12)
    worse = module.measure(images, checkered(images), net=net)
    assert ((worse < best) if module.HIGHER_IS_BETTER else (worse > best)).all()
    assert all(module.RANGE[0] <= value <= module.RANGE[1] for value in worse.tolist())


@each
def test_images_are_measured_one_by_one(name, net, photographs, noisy):
    images = photographs(3, smallest(name))
    other = noisy(images, 0.1)
    together = metrics.get(name).measure(images, other, net=net)
    alone = [metrics.get(name).measure(images[i : i + 1], other[i : i + 1], net=net).item() for i in range(3)]
    assert together.shape == (3,)
    assert together.tolist() == pytest.approx(alone, rel=1e-4)


@each
def test_half_precision_is_measured_in_float32(name, net, photographs, noisy):
    images = photographs(1, smallest(name)).half()
    other = noisy(images.float(), 0.1).half()
    found = metrics.get(name).measure(images, other, net=net)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(metrics.get(name).measure(images.float(), other.float(), net=net).item())


WRONG = {
    "minus one to one": (lambda x: 2 * x - 1, r"looks like \[-1, 1\]"),
    "bytes": (lambda x: 255 * x, r"looks like 0\.\.255; divide by 255"),
    "uint8": (lambda x: (255 * x).byte(), "torch.uint8"),
    "NaN": (lambda x: torch.where(x > x.mean(), math.nan, x), "NaN in"),
    "Inf": (lambda x: torch.where(x > x.mean(), math.inf, x), "Inf in"),
    "no batch": (lambda x: x[0], "without the batch axis"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), "channels last"),
    "grey": (lambda x: x[:, :1], "grey or alpha"),
    "cropped": (lambda x: x[..., :-1], "same size"),
    "empty": (lambda x: x[:0], "no images"),
    "far out": (lambda x: 3 * x - 1.5, "clamp"),
}


@each
@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_input_is_refused_and_named(name, net, wrong, photographs):
    spoil, message = WRONG[wrong]
    images = photographs(2, smallest(name) + 16)
    with pytest.raises(EvalError, match=message):
        metrics.get(name).measure(images, spoil(images), net=net)


@each
def test_a_rounding_error_beyond_the_range_is_accepted(name, net, photographs):
    images = photographs(1, smallest(name))
    metrics.get(name).measure(images, (images + 0.0005).clamp(-0.0005, 1.0005) - 0.0009, net=net)


TENSOR_METRICS = [name for name in metrics.names() if metrics.takes(name) == "tensors"]


@pytest.mark.parametrize("name", TENSOR_METRICS)
def test_tensors_score_best_against_themselves_and_are_measured_one_by_one(name):
    module = metrics.get(name)
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(3, 5, 8, generator=generator)
    other = reference + torch.randn(3, 5, 8, generator=generator)
    assert module.measure(reference, reference).tolist() == [best_value(module)] * 3
    worse = module.measure(reference, other)
    assert ((worse < best_value(module)) if module.HIGHER_IS_BETTER else (worse > best_value(module))).all()
    alone = [module.measure(reference[i : i + 1], other[i : i + 1]).item() for i in range(3)]
    assert worse.tolist() == pytest.approx(alone)
    assert module.measure(reference.half(), other.half()).dtype == torch.float32


@pytest.mark.parametrize("name", TENSOR_METRICS)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x[:, :4], "same inputs"),
        (lambda x: torch.where(x > 1, math.nan, x), "candidate has NaN in"),
        (lambda x: torch.where(x > 1, math.inf, x), "candidate has Inf in"),
        (lambda x: (100 * x).int(), "torch.int32"),
    ],
)
def test_a_wrong_tensor_is_refused_and_named(name, spoil, message):
    values = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(EvalError, match=message):
        metrics.get(name).measure(values, spoil(values))
    found = compare.compare_tensors(values, spoil(values), [compare.Metric(name=name)])[0]
    assert any(math.isnan(value) for value in found.values)
    assert found.broken == sum(math.isnan(value) for value in found.values)
