"""Quantized layers for ExecuTorch: those that XNNPACK computes in integers, and those that it does not.

Source: `_decomposed` for the former. XNNPACK's 8-bit kernels want the ranges of a layer's input and of its output;
without them the stored integers are dequantized by a kernel of ExecuTorch's whenever the program runs.
Differs: a linear layer or a convolution on a weight that is made at run time is written in products of matrices, which
XNNPACK has; one with groups or dilation runs on ExecuTorch's portable kernel. An embedding looks up integers and
scales, and dequantizes the rows that it found.
"""

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compress.export._decomposed import Style, decomposed, signed
from compress.nn.affine import ActivationRange, PerTensor
from compress.nn.qmodules import QConv2d, QEmbedding, QuantizedModule, quantized
from compress.nn.surgery import replaced


def spelled_out(module: nn.Module) -> nn.Module:
    """The same network, its quantized layers in operators that ExecuTorch has."""
    loose = {name: q for name, q in quantized(module).items() if not in_integers(q)}
    return decomposed(replaced(module, {name: _Loose(q).eval() for name, q in loose.items()}), Style())


def in_integers(q: QuantizedModule) -> bool:
    """Whether XNNPACK has an integer kernel for the layer."""
    return not isinstance(q, QEmbedding) and q.layer.input is not None and q.layer.output is not None


class _Loose(nn.Module):
    """A layer whose weight is dequantized when it runs; takes and gives what the layer takes and gives."""

    qdata: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    bias: torch.Tensor | None
    one: torch.Tensor

    def __init__(self, q: QuantizedModule) -> None:
        super().__init__()
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  # importing it registers the operators

        self.input, self.output = q.layer.input, q.layer.output
        self.one_scale = float(q.scale[0]) if isinstance(q.layer.granularity, PerTensor) else None
        self.table, self.shape = isinstance(q, QEmbedding), tuple(q.qdata.shape)
        self.geometry: tuple[Any, ...] = ()
        if isinstance(q, QConv2d):
            self.geometry = (q.stride, q.padding, q.dilation, q.groups)
        self.register_buffer("qdata", q.qdata)
        self.register_buffer("scale", q.scale)
        self.register_buffer("zero_point", torch.zeros(q.scale.shape, dtype=torch.int64))
        self.register_buffer("bias", q.effective_bias())
        if isinstance(q, QConv2d) and any(q.padding):
            self.register_buffer("one", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table:
            return self._rows(x)
        if self.input is not None:
            x = _rounded(x, self.input)
        y = self._operation(x, self._weight())
        return y if self.output is None else _rounded(y, self.output)

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        scale = self.scale if self.one_scale is not None else functional.embedding(ids, self.scale.unsqueeze(1))
        return functional.embedding(ids, self.qdata).to(torch.float32) * scale

    def _weight(self) -> torch.Tensor:
        ops, limits = torch.ops.quantized_decomposed, (-127, 127, torch.int8)
        if self.one_scale is not None:
            return ops.dequantize_per_tensor(self.qdata, self.one_scale, 0, *limits)
        return ops.dequantize_per_channel(self.qdata, self.scale, self.zero_point, 0, *limits)

    def _operation(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not self.geometry:
            y = torch.bmm(x.reshape(1, -1, x.shape[-1]), weight.t().unsqueeze(0)).reshape(*x.shape[:-1], -1)
            return y if self.bias is None else y + self.bias
        if self.geometry[2:] == ((1, 1), 1):
            y = self._product(x, weight) if self._pointwise() else self._products(x, weight)
            return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)
        # Not straight from its dequantization: where executorch 1.5 sees two at a convolution that it then does not
        # take, it leaves out that of `x`.
        beside = weight.reshape(len(weight), -1).reshape(self.shape)
        return functional.conv2d(x, beside, self.bias, *self.geometry)

    def _pointwise(self) -> bool:
        return self.shape[2:] == (1, 1) and self.geometry[:2] == ((1, 1), (0, 0))

    def _product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """A 1x1 convolution of one picture."""
        flat = weight.reshape(1, *self.shape[:2])
        return torch.bmm(flat, x.reshape(1, x.shape[1], -1)).reshape(1, -1, *x.shape[2:])

    def _products(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The convolution of one picture as a sum of products of matrices, one for each place in the kernel."""
        (down, right), (above, beside) = self.geometry[:2]
        if above or beside:
            x = functional.pad(x * self.one, (beside, beside, above, above))  # XNNPACK pads no integers
        rows = (x.shape[2] - self.shape[2]) // down + 1
        columns = (x.shape[3] - self.shape[3]) // right + 1
        made: torch.Tensor | None = None
        for i, j in itertools.product(range(self.shape[2]), range(self.shape[3])):
            part = x[:, :, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
            product = torch.bmm(weight[:, :, i, j].unsqueeze(0), part.reshape(1, x.shape[1], -1))
            made = product if made is None else made + product
        assert made is not None
        return made.reshape(1, -1, rows, columns)


def _rounded(x: torch.Tensor, grid: ActivationRange) -> torch.Tensor:
    ops, near = torch.ops.quantized_decomposed, signed(grid)
    limits = (-128, 127, torch.int8)
    integers = ops.quantize_per_tensor(x, near.scale, near.zero_point, *limits)
    return ops.dequantize_per_tensor(integers, near.scale, near.zero_point, *limits)
