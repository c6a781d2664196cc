"""Whether a network's values fit into float16, before it is written in that precision.

Source: IEEE 754-2019 binary16, whose largest number is 65504.
Differs: judged on what every operator gives for the inputs at hand, in float32; what a runtime's kernel holds inside
(the squares of a variance, say) is not seen. Infinities that are meant, such as an attention mask's, pass.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from compress.errors import UserError
from compress.records import Inputs

LARGEST = torch.finfo(torch.float16).max
SHOWN = 5  # modules that a message names


def refuse_overflow(module: nn.Module, example: Inputs) -> None:
    """Run the module once and look at every value that it makes.

    Args:
        module: computes in float32; may hold quantized layers.
        example: inputs as it will be given, not zeros: magnitudes are what is judged.

    Raises:
        UserError: values beyond float16, or NaN; names the modules, the worst first.
    """
    peaks = _peaks(module, example)
    broken = [name for name in peaks if not peaks[name] <= LARGEST]
    worst = sorted(broken, key=lambda name: (-math.inf if math.isnan(peaks[name]) else -peaks[name], name))
    if worst:
        named = ", ".join(f"{name or 'the module itself'} {peaks[name]:.4g}" for name in worst[:SHOWN])
        more = f" and {len(worst) - SHOWN} more" if len(worst) > SHOWN else ""
        raise UserError(
            f"precision: float16 ends at {LARGEST:.0f}, and the values made here are larger: {named}{more}; "
            "choose precision: float32"
        )


def _peaks(module: nn.Module, example: Inputs) -> dict[str, float]:
    """The largest finite magnitude that each module's own operators make; NaN where one makes NaN."""
    stack, peaks = [""], dict[str, float]()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
                    peaks[stack[-1]] = _larger(peaks.get(stack[-1], 0.0), _peak(tensor))
            return made

    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda _, __, name=name: stack.append(name)))
        hooks.append(part.register_forward_hook(lambda _, __, ___: _popped(stack)))
    try:
        with torch.no_grad(), Watch():
            module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return peaks


def _popped(stack: list[str]) -> None:
    stack.pop()


def _larger(a: float, b: float) -> float:
    return a if math.isnan(a) or b <= a else b  # NaN wins


def _peak(tensor: torch.Tensor) -> float:
    magnitudes = tensor.detach().abs()
    return float(magnitudes.masked_fill(magnitudes.isinf(), 0.0).max())
