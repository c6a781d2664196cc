"""What two batches of tensors must be to be compared: one shape, finite, one sample or more."""

import torch
from torch import Tensor

from eval.errors import EvalError


def check_pair(reference: Tensor, candidate: Tensor) -> None:
    """Refuse anything but two finite batches of the same shape [n, ...], n >= 1.

    Raises:
        EvalError: says which of the two it is and what is wrong with it.
    """
    if reference.shape != candidate.shape:
        raise EvalError(
            f"reference has shape {list(reference.shape)} and candidate {list(candidate.shape)}: "
            "they must be outputs for the same inputs"
        )
    for name, values in (("reference", reference), ("candidate", candidate)):
        if values.dim() < 2 or 0 in values.shape:
            raise EvalError(f"{name} has shape {list(values.shape)} where [n, ...] with one sample or more is expected")
        problem = describe(values)
        if problem:
            raise EvalError(f"{name} has {problem}")


def describe(values: Tensor) -> str | None:
    """What is wrong with the values of one tensor or of several; None where nothing is."""
    if not values.is_floating_point():
        return f"{values.dtype} values where floats are expected"
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    if nan:
        return f"NaN in {nan} of {values.numel()} values"
    return f"Inf in {inf} of {values.numel()} values" if inf else None


def result_dtype(values: Tensor) -> torch.dtype:
    """What a metric of these is given in: float32 also for half precision, float64 for float64."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32
