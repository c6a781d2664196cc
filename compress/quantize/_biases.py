"""Bias correction: the mean error of each output channel, taken out of the bias.

Source: Nagel et al. 2019 (arXiv:1906.04721), section 4.2: the expected error is W_q E[x_q] - W E[x].
Differs: each layer is compared with its float self on the float network's activations, so that one pass serves all of
them, and it can be the pass in which ranges are measured: no twin is run. E[x] is exact, with a convolution's padding;
what the grids of input and output add is the mean over some values that are kept.
Cost: up to `KEPT` values of each input and output, of all samples together.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calibration import averages, collect
from compress.nn.affine import ActivationRange, dequantize, fake_quantize
from compress.nn.batches import split, spread
from compress.nn.qmodules import QConv2d, QLinear, QuantizedModule
from compress.records import Inputs

KEPT = 1 << 17  # values of one tensor
SAMPLES = 4  # tell a channel's mean error well: each has all its pixels or tokens


class Averages:
    """What layers read and make, gathered while somebody watches a module (`calibration.collect.See`)."""

    def __init__(self, samples: int) -> None:
        self.samples = samples  # of the whole pass
        self.reads: dict[str, averages.Reads] = {}
        self.rows: dict[tuple[str, str], list[Tensor]] = {}

    def see(self, name: str, what: str, part: nn.Module, value: Any) -> None:
        """One input or output of a layer; of anything but a convolution or linear layer, nothing."""
        if not isinstance(part, averages.Layer) or not isinstance(value, Tensor):
            return
        if what == "input":
            found = averages.start(part, value)
            self.reads[name] = averages.merge(self.reads[name], found) if name in self.reads else found
        rows = self.rows.setdefault((name, what), [])
        channels = value.shape[1 if isinstance(part, nn.Conv2d) else -1]
        most = max(1, KEPT // (channels * self.samples))
        rows.append(averages.some_rows(part, value, most, turn=len(rows)))

    def mean_error(self, name: str, layer: averages.Layer, twin: QConv2d | QLinear) -> Tensor:
        """What the twin's outputs are too large by on average, channel by channel: [o], float64."""
        reads = self.reads[name]
        rounded, weight = (w.detach().double().cpu() for w in (dequantize(twin.quantized_weight), layer.weight))
        kernel = reads.mean.shape[1:]
        moved = self._moved(name, "input", twin.layer.input)[:, None, None] * reads.share_inside
        error = _outputs(rounded - weight.view_as(rounded), reads.mean, kernel)
        error = error + _outputs(rounded, moved, kernel) + self._moved(name, "output", twin.layer.output)
        bias, plain = twin.effective_bias(), layer.bias
        return error if bias is None or plain is None else error + (bias - plain.detach()).double().cpu()

    def _moved(self, name: str, what: str, grid: ActivationRange | None) -> Tensor:
        """How far a grid moves the values of each channel, on average."""
        rows = torch.cat(self.rows[name, what])
        moved = torch.zeros_like(rows) if grid is None else fake_quantize(rows, grid) - rows
        return moved.double().mean(0).cpu()


def averages_of(module: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs, batch: int) -> Averages:
    """A pass of a few of the inputs, for those who measure nothing else."""
    few = spread(inputs, SAMPLES)
    seen = Averages(len(few[0]))
    names = [name for name, layer in layers.items() if isinstance(layer, averages.Layer)]
    if names:
        collect.watch(module, split(few, batch), names, seen.see)
    return seen


def _outputs(weight: Tensor, reads: Tensor, kernel: torch.Size) -> Tensor:
    """The mean outputs of a layer, groups and all, whose kernel elements read so much on average."""
    by_element = weight.reshape(*weight.shape[:2], *kernel)
    groups = reads.shape[0] // by_element.shape[1]
    of_group = reads.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return (by_element.flatten(1) * of_group).sum(1)


def correct_biases(layers: Mapping[str, nn.Module], swaps: Mapping[str, QuantizedModule], seen: Averages) -> None:
    """Take the mean error of every output channel out of the twins' biases; layers without a bias keep their error."""
    for name, twin in swaps.items():
        layer = layers[name]
        if isinstance(layer, averages.Layer) and isinstance(twin, QConv2d | QLinear) and twin.bias is not None:
            twin.bias = twin.bias - seen.mean_error(name, layer, twin).float().to(twin.bias.device)
