"""Ways to break an image decoder: each makes the pictures of a broken md-tiny/decoder from the sound one."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.components import vae


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The sound decoder, what it decodes, and what it makes of it."""

    decoder: vae.Decoder
    latents: Tensor
    pictures: Tensor  # [n, 3, h, w]
    truth: Tensor


Break = Callable[[Given], Tensor]


def noise(shape: torch.Size, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(change: Callable[[Tensor], Tensor]) -> Break:
    """A fault behind the decoder."""
    return lambda given: change(given.pictures.clone())


def latents(change: Callable[[Tensor], Tensor]) -> Break:
    """A fault before it."""
    return lambda given: decoded(given.decoder, change(given.latents.clone()))


def weights(change: Callable[[vae.Decoder], None]) -> Break:
    """A fault inside it."""

    def broken(given: Given) -> Tensor:
        module = copy.deepcopy(given.decoder)
        with torch.no_grad():
            change(module)
        return decoded(module, given.latents)

    return broken


def decoded(module: nn.Module, z: Tensor) -> Tensor:
    with torch.no_grad():
        return module(z)


def one(change: Callable[[Tensor], Tensor]) -> Break:
    """A fault in the last picture alone."""

    def broken(given: Given) -> Tensor:
        return torch.cat((given.pictures[:-1], change(given.pictures[-1:].clone())))

    return broken


def convolutions(module: vae.Decoder) -> list[nn.Conv2d]:
    """Those inside of the levels, in order."""
    return [layer for layer in module.levels.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)]


def rounded(layer: nn.Conv2d, bits: int) -> None:
    """One scale for the whole layer."""
    scale = layer.weight.abs().max() / (2 ** (bits - 1) - 1)
    layer.weight.copy_((layer.weight / scale).round() * scale)


def at_low_bits(module: vae.Decoder) -> None:
    for layer in convolutions(module):
        rounded(layer, 2)


def zero_scale(module: vae.Decoder) -> None:
    layers = convolutions(module)
    layers[len(layers) // 2].weight.zero_()
    module.linear.weight[: module.linear.weight.shape[0] // 2].zero_()


def exchanged(module: vae.Decoder) -> None:
    """Two layers of one shape get each other's weights."""
    layers = convolutions(module)
    first = layers[-1]
    second = next(layer for layer in reversed(layers[:-1]) if layer.weight.shape == first.weight.shape)
    first.weight.data, second.weight.data = second.weight.data, first.weight.data


def stale(module: vae.Decoder) -> None:
    """Every layer as an older training left it: some way off where it is now."""
    for index, layer in enumerate([*convolutions(module), module.conv_out]):
        layer.weight.add_(0.5 * layer.weight.std() * noise(layer.weight.shape, index))


def random_layer(module: vae.Decoder) -> None:
    layer = module.conv_in
    layer.weight.copy_(layer.weight.std() * noise(layer.weight.shape))


def dead_channels(module: vae.Decoder) -> None:
    layer = module.norm_out
    layer.weight[::4] = 0
    layer.bias[::4] = 0


def dead_colour(module: vae.Decoder) -> None:
    module.conv_out.weight[2] = 0
    module.conv_out.bias[2] = 0
    size = module.linear.weight.shape[0] // 3
    module.linear.weight[2 * size :] = 0
    module.linear.bias[2 * size :] = 0


def no_linear_path(module: vae.Decoder) -> None:
    module.linear.weight.zero_()
    module.linear.bias.zero_()


def network_gone(module: vae.Decoder) -> None:
    module.conv_out.weight.zero_()
    module.conv_out.bias.zero_()


def norms_lost(module: vae.Decoder) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.fill_(1.0)
            layer.bias.zero_()


def biases_lost(module: vae.Decoder) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            layer.bias.zero_()


def overflowing(given: Given) -> Tensor:
    """A trunk that float32 holds and float16 does not: large before a normalisation that takes the size out again."""
    module = copy.deepcopy(given.decoder)
    with torch.no_grad():
        module.conv_in.weight.mul_(1e5)
        module.conv_in.bias.mul_(1e5)
    return decoded(module.half(), given.latents.half()).float()


def saturated(given: Given) -> Tensor:
    """Activations calibrated too narrowly: everything before the last normalisation is cut at a third of its range."""
    module = copy.deepcopy(given.decoder)

    def cut(layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest = arguments[0].abs().max() / 12
        return (arguments[0].clamp(-largest, largest),)

    module.norm_out.register_forward_pre_hook(cut)
    return decoded(module, given.latents)


def checkers(x: Tensor) -> Tensor:
    rows, columns = (torch.arange(side) for side in x.shape[2:])
    return (x + 6 / 255 * (((rows[:, None] + columns) % 2) * 2.0 - 1)).clamp(0, 1)


def blocks(x: Tensor) -> Tensor:
    """Each patch of 8x8 is off by a colour of its own, as when a linear path is rounded too coarsely."""
    offsets = noise(torch.Size((len(x), 3, x.shape[2] // 8, x.shape[3] // 8)))
    return (x + 5 / 255 * offsets.repeat_interleave(8, 2).repeat_interleave(8, 3)).clamp(0, 1)


def cosines() -> Tensor:
    k = torch.arange(8)
    matrix = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix


def compressed(x: Tensor) -> Tensor:
    """8x8 cosines rounded to steps that grow with frequency: what JPEG does at low quality."""
    matrix, k = cosines(), torch.arange(8)
    steps = (24 + 10 * (k[:, None] + k)) / 255
    patches = x.unfold(2, 8, 8).unfold(3, 8, 8)
    coefficients = matrix @ patches @ matrix.T
    patches = matrix.T @ ((coefficients / steps).round() * steps) @ matrix
    return patches.permute(0, 1, 2, 4, 3, 5).reshape(x.shape).clamp(0, 1)


def box(x: Tensor, side: int) -> Tensor:
    return functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)


def halved(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)


def black_half(x: Tensor) -> Tensor:
    x[..., x.shape[3] // 2 :] = 0
    return x


def black_corner(x: Tensor) -> Tensor:
    x[..., : x.shape[2] // 3, : x.shape[3] // 3] = 0
    return x


def seams(x: Tensor) -> Tensor:
    """Tiles of half a side that were decoded apart and do not meet."""
    half = x.shape[2] // 2
    x[:, :, :half, :half] *= 0.94
    x[:, :, half:, half:] *= 1.06
    return x.clamp(0, 1)


def with_nan(x: Tensor) -> Tensor:
    x[0, 1, 5, 7] = math.nan
    return x


CAST = torch.tensor([0.05, 0.0, -0.05])[None, :, None, None]

BREAKAGES: dict[str, Break] = {
    "noise in the picture": pictures(lambda x: (x + 0.03 * noise(x.shape)).clamp(0, 1)),
    "noise in the latents": latents(lambda z: z + 0.1 * z.std() * noise(z.shape)),
    "noise in one picture of the set": one(lambda x: (x + 0.06 * noise(x.shape)).clamp(0, 1)),
    "shifted by one pixel": pictures(lambda x: x.roll(1, 3)),
    "shifted by one latent": latents(lambda z: z.roll(1, 2)),
    "gamma applied twice": pictures(lambda x: x**2.2),
    "slightly wrong gamma": pictures(lambda x: x**1.15),
    "darker by a tenth": pictures(lambda x: 0.9 * x),
    "colour cast": pictures(lambda x: (x + CAST).clamp(0, 1)),
    "red and blue swapped": pictures(lambda x: x.flip(1)),
    "colours lost": pictures(lambda x: x.mean(1, keepdim=True).expand_as(x).contiguous()),
    "inverted": pictures(lambda x: 1 - x),
    "dead colour channel": weights(dead_colour),
    "dead channels inside": weights(dead_channels),
    "output in [-1, 1]": pictures(lambda x: 2 * x - 1),
    "output in [-1, 1], cut to [0, 1]": pictures(lambda x: (2 * x - 1).clamp(0, 1)),
    "output in 0..255": pictures(lambda x: 255 * x),
    "[0, 1] taken for [-1, 1]": pictures(lambda x: (x + 1) / 2),
    "range cut at both ends": pictures(lambda x: x.clamp(0.15, 0.85)),
    "latents scaled twice": latents(lambda z: 0.18215 * z),
    "latents not normalised": latents(lambda z: z + 0.5 * z.std()),
    "stale file: weights of an earlier training": weights(stale),
    "two layers exchanged": weights(exchanged),
    "one layer never loaded": weights(random_layer),
    "normalisation parameters lost": weights(norms_lost),
    "biases lost": weights(biases_lost),
    "linear path lost": weights(no_linear_path),
    "network lost, linear path alone": weights(network_gone),
    "weights at 2 bits per tensor": weights(at_low_bits),
    "quantization with a zero scale": weights(zero_scale),
    "activations cut by a bad calibration": saturated,
    "overflow in float16": overflowing,
    "one NaN in one picture": one(with_nan),
    "checkerboard": pictures(checkers),
    "8x8 blocks": pictures(blocks),
    "compressed like a JPEG": pictures(compressed),
    "blurred": pictures(lambda x: box(x, 5)),
    "half the resolution": pictures(halved),
    "tiles that do not meet": pictures(seams),
    "16 levels per channel": pictures(lambda x: (x * 15).round() / 15),
    "transposed": pictures(lambda x: x.transpose(2, 3).contiguous()),
    "mirrored": pictures(lambda x: x.flip(3)),
    "upside down": pictures(lambda x: x.flip(2)),
    "every picture the same grey": pictures(lambda x: torch.full_like(x, 0.5)),
    "black": pictures(torch.zeros_like),
    "half of the picture black": pictures(black_half),
    "a corner of one picture black": one(black_corner),
    "pictures in another order": pictures(lambda x: x.roll(1, 0)),
    "the same picture for every input": pictures(lambda x: x[:1].expand_as(x).contiguous()),
    "the photographs themselves": lambda given: given.truth.clone(),
}
