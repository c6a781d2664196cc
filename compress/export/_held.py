"""Whether a format can hold each layer of a module: what `refuse` says of one quantization, asked layer by layer."""

from collections.abc import Callable

from torch import nn

from compress.errors import UserError
from compress.nn.qmodules import quantized


def refuse_layers(format_name: str, module: nn.Module, refuse: Callable[..., list[str]], config: object) -> None:
    """Ask a format's `refuse` about every quantized layer.

    Raises:
        UserError: the format cannot hold some layers; all of them are named, each with its reasons.
    """
    problems = []
    for name, q in quantized(module).items():
        grids = [grid.bits for grid in (q.layer.input, q.layer.output) if grid is not None]
        reasons = refuse(q.layer.bits, q.layer.granularity, max(grids, default=32), config)
        problems += [f"{name}: {reason}" for reason in reasons]
    if problems:
        raise UserError(f"{format_name} cannot hold this variant:\n" + "\n".join(problems))
