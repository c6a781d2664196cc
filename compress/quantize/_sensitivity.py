"""How much each layer's rounding hurts the component's output: that layer alone rounded, and that layer alone spared.

Source: measured sensitivity in the place of a Hessian's trace (HAWQ-V3, Yao et al. 2021, arXiv:2011.10680); a layer
that joins none, and one that joins all others, are the two ends of its Shapley value.
Differs: the estimate that is added up is the mean of the two ends, so that two measurements per layer do.
Cost: one pass for each layer and option, and one more for each layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compress.nn.affine import Granularity, PerGroup, stored_bytes
from compress.nn.qmodules import FloatLayer, QuantizedModule
from compress.nn.surgery import replaced
from compress.records import Inputs

SMALLEST_PICTURE = 32  # pixels on each side: what LPIPS can see


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to hold a layer; 32 bits without a granularity: as it is."""

    bits: int
    granularity: Granularity | None
    activation_bits: int = 32

    @property
    def label(self) -> str:
        """As a table's column says it."""
        weights = "float" if self.granularity is None else f"{self.bits} bits"
        return weights if self.activation_bits == 32 else f"{weights}, {self.activation_bits}-bit activations"

    def fits(self, layer: FloatLayer) -> bool:
        """Whether the layer has whole groups."""
        return not isinstance(self.granularity, PerGroup) or layer.weight[0].numel() % self.granularity.size == 0

    def bytes_of(self, layer: FloatLayer) -> int:
        """Of the layer's weight, scales included."""
        if self.granularity is None:
            return 4 * layer.weight.numel()
        return stored_bytes(layer.weight.shape, bits=self.bits, granularity=self.granularity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Errors of the component's output against that of the float component, on the same inputs."""

    alone: Mapping[str, tuple[float, ...]]  # layer -> its error when it alone is rounded, for each option
    spared: Mapping[str, float]  # layer -> by how much the error of all falls when it alone is not rounded
    whole: float  # all layers rounded as their first option says

    def damages(self) -> dict[str, tuple[float, ...]]:
        """Layer -> what each option is expected to add: the error alone, corrected by what sparing the layer gave.

        The correction is measured at the first option and carries over to the others; it halves at most.
        """
        found = {}
        for name, errors in self.alone.items():
            share = max(self.spared[name], 0.0) / errors[0] if errors[0] > 0 else 1.0
            found[name] = tuple(error * (1 + share) / 2 for error in errors)
        return found


Judge = Callable[[torch.Tensor], tuple[float, ...]]  # an output -> its error by each measure


def measure(
    module: nn.Module,
    twins: Mapping[str, Sequence[QuantizedModule | None]],
    inputs: Inputs,
    judge: Judge,
    progress: Callable[[int, int, str], None],
) -> tuple[Sensitivity, ...]:
    """The sensitivities by each of the judge's measures.

    Args:
        module: The float component.
        twins: Layer -> how it would be held, the coarsest first; None where an option leaves it in float.
        inputs: One batch to run.
        judge: Compares an output with the float one.
        progress: Told of each layer.
    """

    def errors(swaps: Mapping[str, QuantizedModule | None]) -> tuple[float, ...]:
        made = replaced(module, {name: twin for name, twin in swaps.items() if twin is not None})
        with torch.no_grad():
            return judge(made(*inputs))

    coarsest = {name: options[0] for name, options in twins.items()}
    whole = errors(coarsest)
    nothing = (0.0,) * len(whole)
    alone: dict[str, list[tuple[float, ...]]] = {}
    spared: dict[str, tuple[float, ...]] = {}
    for done, (name, options) in enumerate(twins.items()):
        progress(done, len(twins), f"sensitivity of {name}")
        alone[name] = [nothing if twin is None else errors({name: twin}) for twin in options]
        spared[name] = errors(coarsest | {name: None})
    return tuple(
        Sensitivity(
            alone={name: tuple(error[which] for error in found) for name, found in alone.items()},
            spared={name: whole[which] - error[which] for name, error in spared.items()},
            whole=whole[which],
        )
        for which in range(len(whole))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The float output that others are compared with."""

    output: torch.Tensor
    power: float  # that decibels count from: 1 of pictures (PSNR), else the output's mean square (SQNR)
    picture: bool

    def decibels(self, error: float) -> float:
        """Of the power over a mean squared error; 200 where there is none."""
        return 200.0 if error <= 1e-20 * self.power else 10 * math.log10(self.power / error)


def target_of(module: nn.Module, inputs: Inputs) -> Target:
    """A picture is [n, 3, h, w] in [0, 1], with sides that LPIPS can see."""
    with torch.no_grad():
        output: torch.Tensor = module(*inputs)
    picture = output.dim() == 4 and output.shape[1] == 3 and min(output.shape[2:]) >= SMALLEST_PICTURE
    picture = picture and float(output.min()) >= 0 and float(output.max()) <= 1
    return Target(output=output, power=1.0 if picture else float(output.square().mean()), picture=picture)


def judge_of(target: Target, *, lpips: bool) -> Judge:
    """Mean squared error to the target, and LPIPS (st-alex) to it where asked for.

    Raises:
        UserError: the file of the net is missing; says how to get it.
    """
    if not lpips:
        return lambda output: (float((output - target.output).square().mean()),)
    from eval.metrics import lpips as metric

    net = metric.load("st-alex")

    def both(output: torch.Tensor) -> tuple[float, ...]:
        with torch.no_grad():
            distance = float(net(target.output, output).mean())
        return float((output - target.output).square().mean()), distance

    return both
