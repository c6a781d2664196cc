"""A component's inputs: one tuple of tensors per call, the samples along each tensor's first axis.

A decoder has one input; a UNet has three: noisy latents [n, z, h, w], time steps [n] and text embeddings [n, t, c].
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from compress.records import Inputs

Run = Callable[..., torch.Tensor]  # an nn.Module, or an artifact in its runtime


def take(inputs: Inputs, start: int, stop: int) -> Inputs:
    """The samples from `start` to `stop`."""
    return tuple(x[start:stop] for x in inputs)


def spread(inputs: Inputs, count: int) -> Inputs:
    """At most `count` samples: spread evenly over the time steps, one number per sample, if any; else the first.

    A diffusion UNet sees other ranges at other time steps, so the few that a measurement keeps must not be of one kind.
    """
    samples = len(inputs[0])
    steps = next((x for x in inputs if x.dim() == 1 and len(x) == samples), None)
    if steps is None or count >= samples:
        return take(inputs, 0, count)
    ranks = [(2 * i + 1) * samples // (2 * count) for i in range(count)]  # the middle of each of `count` equal parts
    chosen = steps.argsort(stable=True)[ranks].sort().values
    return tuple(x[chosen] for x in inputs)


def split(inputs: Inputs, batch: int) -> Iterator[Inputs]:
    """The samples in order, `batch` at a time; the last part may be smaller."""
    return zip(*(x.split(batch) for x in inputs), strict=True)


def central_crop(inputs: Inputs, size: int) -> Inputs:
    """The middle `size` x `size` of pictures and latents [n, c, h, w], where they are larger; all else whole."""
    return tuple(_cropped(x, size) if x.dim() == 4 else x for x in inputs)


def _cropped(x: torch.Tensor, size: int) -> torch.Tensor:
    top, left = (max(0, (side - size) // 2) for side in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def joined(parts: Sequence[Inputs]) -> Inputs:
    """The samples of all parts, one after the other."""
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def outputs(run: Run, inputs: Inputs, batch: int = 2) -> torch.Tensor:
    """What `run` makes of all samples, `batch` at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([run(*part) for part in split(inputs, batch)])


def named(inputs: Inputs) -> dict[str, torch.Tensor]:
    """The tensors under the names that a file of samples gives them: input.0, input.1, ..."""
    return {f"input.{i}": x.detach().contiguous() for i, x in enumerate(inputs)}


def unnamed(tensors: Mapping[str, torch.Tensor]) -> Inputs:
    """The inputs in a file of samples, in their order."""
    count = sum(name.startswith("input.") for name in tensors)
    return tuple(tensors[f"input.{i}"] for i in range(count))
