"""What an image is here: float32 NCHW in [0, 1]. The one place that says so when it is not."""

import torch
from torch import Tensor

from eval.errors import EvalError

TOLERANCE = 1e-3  # beyond [0, 1]: what resampling and half precision leave behind


def describe_range(low: float, high: float) -> str | None:
    """Name what values that leave [0, 1] look like; None where they do not leave it."""
    if low >= -TOLERANCE and high <= 1 + TOLERANCE:
        return None
    found = f"values in [{low:.4g}, {high:.4g}] where [0, 1] is expected"
    if low >= -1 - TOLERANCE and high <= 1 + TOLERANCE:
        return f"{found}: looks like [-1, 1]; use (x + 1) / 2, or clamp what a decoder overshoots"
    if low >= -TOLERANCE and 2 <= high <= 255 + TOLERANCE:
        return f"{found}: looks like 0..255; divide by 255"
    return f"{found}: clamp to [0, 1], or look for a scale that was not undone"


def describe_values(images: Tensor) -> str | None:
    """Name what is wrong with the values of one image or of several; None where nothing is."""
    if not images.is_floating_point():
        return f"{images.dtype} values where float32 in [0, 1] is expected: looks like 0..255; divide by 255"
    nan, inf = int(images.isnan().sum()), int(images.isinf().sum())
    if nan:
        return f"NaN in {nan} of {images.numel()} values"
    if inf:
        return f"Inf in {inf} of {images.numel()} values"
    return describe_range(float(images.min()), float(images.max()))


def check_shapes(reference: Tensor, candidate: Tensor, *, smallest: int = 1) -> None:
    """Refuse anything but two batches of the same shape [n, 3, h, w], n >= 1, `smallest` pixels or more on each side.

    Raises:
        EvalError: says which of the two it is and what its shape looks like.
    """
    for name, images in (("reference", reference), ("candidate", candidate)):
        shape = list(images.shape)
        if len(shape) != 4 or shape[1] != 3:
            raise EvalError(f"{name} has shape {shape} where [n, 3, h, w] is expected{_looks_like(shape)}")
        if shape[0] == 0:
            raise EvalError(f"{name} has no images: shape {shape}")
        if min(shape[2:]) < smallest:
            raise EvalError(f"{name} is {shape[2]}x{shape[3]} pixels; this metric needs {smallest} on each side")
    if reference.shape != candidate.shape:
        raise EvalError(
            f"reference has shape {list(reference.shape)} and candidate {list(candidate.shape)}: "
            "they must be the same pictures at the same size"
        )


def _looks_like(shape: list[int]) -> str:
    if len(shape) == 3 and shape[0] == 3:
        return "; looks like one image without the batch axis: add [None]"
    if shape[-1:] == [3]:
        return "; looks like channels last: permute to [n, 3, h, w]"
    if len(shape) == 4 and shape[1] in (1, 4):
        return "; looks like grey or alpha images: convert to RGB"
    return ""


def check_pair(reference: Tensor, candidate: Tensor, *, smallest: int = 1) -> None:
    """Refuse anything but two batches of float images [n, 3, h, w] in [0, 1].

    Raises:
        EvalError: says which of the two it is, what it looks like and what to do.
    """
    check_shapes(reference, candidate, smallest=smallest)
    for name, images in (("reference", reference), ("candidate", candidate)):
        problem = describe_values(images)
        if problem is not None:
            raise EvalError(f"{name} has {problem}")


def result_dtype(images: Tensor) -> torch.dtype:
    """What a metric of these images is given in: float32 also for half precision, float64 for float64."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32
