"""What a module costs: parameters, bytes, MACs and activations, per layer and in all.

MACs count one multiply-add as one, of convolutions, linear layers and matrix products (so attention's two products are
counted, whether written as matmul or as scaled_dot_product_attention); norms, activation functions and additions are
not counted (as in the papers). They are torch's own count (`torch.utils.flop_counter`), halved, and belong to the
innermost module that was running.

Activations are elements, whatever their type. The peak is a lower bound from liveness: every operation writes a new
tensor (none in place, none fused), views cost nothing, a tensor is alive from the operation that makes it to the last
one that reads it, the inputs from the start and the outputs to the end; weights and workspaces are not counted.
Quantized layers count as the float layers that they stand for.

Cost: one pass on the meta device, so a model of any size takes no memory.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from compress.nn.affine import stored_bytes
from compress.nn.qmodules import FloatLayer, QuantizedModule
from compress.nn.surgery import float_twin


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One module with parameters or MACs of its own."""

    name: str
    kind: str
    parameters: int
    macs: int
    weight_bytes: int  # as stored: codes packed to their bits, scales, tables and biases in float32
    weights: int  # elements that a quantizer takes: the weight of a convolution, linear layer or embedding, else 0
    channels: int  # output channels of that weight: as many scales has it per channel
    activations: int  # elements of its output, summed over its calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A whole module, for one input shape."""

    layers: tuple[LayerCost, ...]
    alive: Mapping[str, int]  # module name -> most activation elements alive while its own operations run

    @property
    def parameters(self) -> int:
        """Weights, biases and normalisation parameters; scales of quantized weights are not parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def activations(self) -> int:
        """Elements of all layers' outputs."""
        return sum(layer.activations for layer in self.layers)

    @property
    def peak_activations(self) -> int:
        """Most activation elements alive at any moment of the forward pass."""
        return max(self.alive.values(), default=0)

    def weight_bytes_at(self, bits: int) -> int:
        """Bytes with everything in float (32, 16), or integer weights of `bits`, one float32 scale per output channel.

        Biases and normalisation stay in float32 beside integers, as `quantize.rtn` leaves them.
        """
        if bits >= 16:
            return self.parameters * bits // 8
        integers = sum(-(-layer.weights * bits // 8) + 4 * layer.channels for layer in self.layers)
        return integers + 4 * sum(layer.parameters - layer.weights for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """Some layers of a module together, e.g. one ResNet block."""

    name: str
    parameters: int
    macs: int
    weight_bytes: int
    activations: int  # elements of its layers' outputs
    peak_activations: int  # most elements alive while it runs, those that wait for later blocks included


def by_block(cost: Cost, blocks: Sequence[str]) -> tuple[BlockCost, ...]:
    """The cost of each named submodule, and of every layer outside of them by itself; in the order of execution.

    The blocks' sums are the whole. What runs outside of all layers and blocks has no row; its peak is in `cost.alive`.
    """

    def owner(name: str) -> str:
        return next((b for b in blocks if name == b or name.startswith(f"{b}.")), name)

    members: dict[str, list[LayerCost]] = defaultdict(list)
    for layer in cost.layers:
        members[owner(layer.name)].append(layer)
    peaks: dict[str, int] = {}
    for name, alive in cost.alive.items():
        peaks[owner(name)] = max(alive, peaks.get(owner(name), 0))
    order = {name: position for position, name in enumerate(peaks)}
    return tuple(
        BlockCost(
            name=name,
            parameters=sum(x.parameters for x in layers),
            macs=sum(x.macs for x in layers),
            weight_bytes=sum(x.weight_bytes for x in layers),
            activations=sum(x.activations for x in layers),
            peak_activations=peaks.get(name, 0),
        )
        for name, layers in sorted(members.items(), key=lambda item: order.get(item[0], len(order)))
    )


def measure(module: nn.Module, inputs: Sequence[Sequence[int] | torch.Tensor]) -> Cost:
    """Cost of one forward pass on float32 inputs of these shapes (batch included), or on tensors like these."""
    trace = _trace(float_twin(_on_meta(module)), [_ghost(x) for x in inputs])
    return Cost(
        layers=tuple(
            _layer(name, m, macs=trace.macs.get(name, 0), activations=trace.activations.get(name, 0))
            for name, m in module.named_modules()
            if trace.macs.get(name) or _parameters(m)
        ),
        alive=_most_alive(trace),
    )


def _layer(name: str, module: nn.Module, *, macs: int, activations: int) -> LayerCost:
    weight = _matrix(module)
    return LayerCost(
        name=name,
        kind=type(module).__name__,
        parameters=_parameters(module),
        macs=macs,
        weight_bytes=_weight_bytes(module),
        weights=0 if weight is None else weight.numel(),
        channels=0 if weight is None else weight.shape[0],
        activations=activations,
    )


def _on_meta(module: nn.Module) -> nn.Module:
    tensors = (*module.parameters(), *module.buffers())
    memo = {
        id(t): nn.Parameter(t.to("meta"), requires_grad=False) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return copy.deepcopy(module, memo).eval()


def _ghost(x: Sequence[int] | torch.Tensor) -> torch.Tensor:
    return x.to("meta") if isinstance(x, torch.Tensor) else torch.zeros(tuple(x), device="meta")


def _matrix(module: nn.Module) -> torch.Tensor | None:
    """The weight that a quantizer takes or took."""
    if isinstance(module, QuantizedModule):
        return module.qdata
    return module.weight if isinstance(module, FloatLayer) else None


def _parameters(module: nn.Module) -> int:
    if isinstance(module, QuantizedModule):
        return module.qdata.numel() + (0 if module.bias is None else module.bias.numel())
    return sum(p.numel() for p in module.parameters(recurse=False))


def _weight_bytes(module: nn.Module) -> int:
    if not isinstance(module, QuantizedModule):
        return sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))
    bias = 0 if module.bias is None else module.bias.numel() * 4
    spec = module.layer
    return bias + stored_bytes(module.qdata.shape, bits=spec.bits, granularity=spec.granularity)


@dataclass(slots=True, kw_only=True)
class _Trace:
    """What ran: each operation with the tensors (numbers of their storages) that it read and made."""

    macs: dict[str, int] = field(default_factory=dict)
    activations: dict[str, int] = field(default_factory=dict)
    operations: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    elements: dict[int, int] = field(default_factory=dict)  # storage -> its elements
    held: list[torch.UntypedStorage] = field(default_factory=list)  # kept, so that no number is used twice

    def storages(self, tree: Any) -> tuple[int, ...]:
        """The numbers of the storages in a tree of tensors; a storage seen for the first time is noted."""
        found = []
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.elements:
                    self.held.append(storage)
                    self.elements[storage._cdata] = storage.nbytes() // tensor.element_size()
                found.append(storage._cdata)
        return tuple(found)


class _Recorder(TorchDispatchMode):
    """Writes every operation into a trace, under the innermost module that is running."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self.trace = trace
        self.running = [""]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = self.running[-1]
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            flops = count(*args, **(kwargs or {}), out_val=output)
            self.trace.macs[name] = self.trace.macs.get(name, 0) + int(flops) // 2
        read = self.trace.storages((args, kwargs))
        self.trace.operations.append((name, read, self.trace.storages(output)))
        return output


def _trace(ghost: nn.Module, inputs: Sequence[torch.Tensor]) -> _Trace:
    trace = _Trace()
    recorder = _Recorder(trace)

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: recorder.running.append(name)

    def leave(module: nn.Module, _: object, output: Any) -> None:
        name = recorder.running.pop()
        numbers = [t.numel() for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
        trace.activations[name] = trace.activations.get(name, 0) + sum(numbers)

    for name, submodule in ghost.named_modules():
        submodule.register_forward_pre_hook(enter(name))
        submodule.register_forward_hook(leave)
    weights = trace.storages([*ghost.parameters(), *ghost.buffers()])
    trace.operations.append(("", (), trace.storages(inputs)))
    with torch.no_grad(), recorder:
        output = ghost(*inputs)
    trace.operations.append(("", trace.storages(output), ()))
    trace.elements.update(dict.fromkeys(weights, 0))
    return trace


def _most_alive(trace: _Trace) -> dict[str, int]:
    """Module name -> most elements alive during its own operations, in order of execution."""
    born, dies = _lifetimes((read, made) for _, read, made in trace.operations)
    ends: dict[int, list[int]] = defaultdict(list)
    starts: dict[int, list[int]] = defaultdict(list)
    for storage, last in dies.items():
        starts[born[storage]].append(storage)
        ends[last].append(storage)
    alive, most = 0, dict[str, int]()
    for moment, (name, _, _) in enumerate(trace.operations):
        alive += sum(trace.elements[s] for s in starts[moment])
        most[name] = max(most.get(name, 0), alive)
        alive -= sum(trace.elements[s] for s in ends[moment])
    return most


def _lifetimes(operations: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]) -> tuple[dict[int, int], dict[int, int]]:
    """For each storage that anything reads: the operation that makes it, and the last one that reads it."""
    born: dict[int, int] = {}
    dies: dict[int, int] = {}
    for moment, (read, made) in enumerate(operations):
        for storage in (*read, *made):
            born.setdefault(storage, moment)
        dies.update(dict.fromkeys(read, moment))
    return born, dies
