"""What a broken picture looks like: NaN, a wrong range, a flat colour, shifted, mirrored, colours swapped.

Every suspicion is a statement that was tried: the original, changed in the way that the text says, is at least twice as
near to the picture (four times less squared error) as the original is. A picture that is worse in a way that no text
explains is no suspicion; how good it is is for the metrics to say.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from eval.metrics import _images

EXPLAINED = 0.25  # of the squared error may be left when a change is undone
NEAR = 1e-4  # mean squared error (40 dB) below which nothing is suspected
TONE_NEAR = 1e-3  # the same (30 dB) for brightness and colour, which every compression moves a little
STUCK_SHARE, STUCK_DISTANCE = 0.05, 0.1  # of the pixels; of the colour that they should have
DETAIL = 0.02  # standard deviation above which an area is not flat
LARGEST_SHIFT = 1 / 4  # of a side
LUMA = (0.299, 0.587, 0.114)
GAMMAS = (1 / 2.2, 2.2)

Image = Float[Tensor, "3 height width"]
AnyValues = Shaped[Tensor, "3 height width"]  # of what may be uint8 by mistake
Change = tuple[str, Callable[[Tensor], Tensor]]


def suspicion(original: Image, image: AnyValues) -> str | None:
    """What a picture looks like, if it is not what it should be; None where nothing is suspected.

    Args:
        original: What it should look like: the photograph, or better what the reference makes of it. In [0, 1].
        image: The picture.
    """
    return broken(original, image) or likeness(original, image)


def broken(original: Image, image: AnyValues) -> str | None:
    """Why a picture cannot be measured at all: its values are no image's, or it is flat where the original is not."""
    found = _images.describe_values(image)
    if found is None and _flat(image) and not _flat(original):
        colour = ", ".join(f"{value:.3g}" for value in image[:, 0, 0].tolist())
        return f"a constant image (every pixel is {colour}) of an original that has detail"
    return found


def likeness(original: Image, image: Image) -> str | None:
    """What a measurable picture looks like: a change of the original that explains most of its error."""
    x, y = original.double().cpu().clamp(0, 1), image.double().cpu().clamp(0, 1)
    error = _error(x, y)
    if error < NEAR:
        return None
    best, text = min((_error(change(x), y), text) for text, change in _changes(x))
    if best <= EXPLAINED * error:
        return text
    return _shift(x, y) or _dead(x, y) or _stuck(x, y) or (_tone(x, y, error) if error > TONE_NEAR else None)


def another(originals: Sequence[Image], images: Sequence[Image]) -> dict[int, int]:
    """Pictures that are not of their own original but of another one of the set: their index to that one's."""
    found: dict[int, int] = {}
    small = [[functional.adaptive_avg_pool2d(one.double(), 8) for one in side] for side in (originals, images)]
    for index, thumbnail in enumerate(small[1]):
        errors = [_error(other, thumbnail) for other in small[0]]
        nearest = min(range(len(errors)), key=errors.__getitem__)
        if nearest == index or errors[index] < TONE_NEAR or errors[nearest] > EXPLAINED * errors[index]:
            continue
        image = images[index].double()
        if _error(originals[nearest].double(), image) <= EXPLAINED * _error(originals[index].double(), image):
            found[index] = nearest
    return found


def _error(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean())


def _flat(image: Tensor) -> bool:
    return bool((image.amax((1, 2)) == image.amin((1, 2))).all())


def _changes(x: Tensor) -> Iterator[Change]:
    """The changes that are tried on the original."""
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            name = "".join("RGB"[channel] for channel in order)
            yield f"channels swapped ({name} for RGB)", partial(torch.index_select, dim=0, index=torch.tensor(order))
    yield "mirrored left to right", lambda t: t.flip(2)
    yield "upside down", lambda t: t.flip(1)
    yield "turned by 180 degrees", lambda t: t.flip((1, 2))
    if x.shape[1] == x.shape[2]:
        yield "transposed: rows and columns exchanged", lambda t: t.transpose(1, 2)
        yield "turned by 90 degrees", lambda t: t.rot90(1, (1, 2))
        yield "turned by 270 degrees", lambda t: t.rot90(3, (1, 2))
    luma = torch.tensor(LUMA, dtype=x.dtype, device=x.device)[:, None, None]
    yield "grey: its colours are gone", lambda t: (luma * t).sum(0).expand(3, -1, -1)
    yield "inverted", lambda t: 1 - t
    yield "a wrong range: [-1, 1] cut to [0, 1]; halve it and add 0.5 before", lambda t: (2 * t - 1).clamp(0, 1)
    yield "a wrong range: [0, 1] taken for [-1, 1]; it is halved and lifted once too often", lambda t: (t + 1) / 2
    yield "a wrong range: divided by 255 twice", lambda t: t / 255
    yield "a wrong range: 0..255 cut to [0, 1]; divide by 255", lambda t: (255 * t).clamp(0, 1)
    for gamma in GAMMAS:
        yield f"gamma {gamma:.2g} applied once too often", partial(torch.pow, exponent=gamma)


def _dead(x: Tensor, y: Tensor) -> str | None:
    """Channels of one value where the original has others."""
    names = "red", "green", "blue"
    dead = [names[c] for c in range(3) if y[c].max() == y[c].min() and x[c].std() > DETAIL]
    return f"a dead channel: {' and '.join(dead)} is the same everywhere" if dead else None


def _stuck(x: Tensor, y: Tensor) -> str | None:
    """Areas of one colour where the original has others."""
    height, width = y.shape[1:]
    spots = [y[:, r, c] for r in (0, height // 2, height - 1) for c in (0, width // 2, width - 1)]
    for colour in (torch.zeros_like(spots[0]), torch.ones_like(spots[0]), *spots):
        same = (y == colour[:, None, None]).all(0)
        if float(same.double().mean()) < STUCK_SHARE:
            continue
        there = x[:, same]
        if (there - colour[:, None]).abs().mean() > STUCK_DISTANCE and there.std(1).max() > DETAIL:
            share = 100 * float(same.double().mean())
            shown = ", ".join(f"{value:.3g}" for value in colour.tolist())
            return f"{share:.0f} % of the pixels stuck at one colour ({shown}) where the original has detail"
    return None


def _shift(x: Tensor, y: Tensor) -> str | None:
    """A whole number of pixels, found at the peak of the correlation."""
    down, right = _displacement(x.mean(0), y.mean(0))
    height, width = y.shape[1:]
    if (down, right) == (0, 0) or abs(down) > LARGEST_SHIFT * height or abs(right) > LARGEST_SHIFT * width:
        return None

    def part(image: Tensor, top: int, left: int) -> Tensor:
        """What of an image both share when its upper left corner is moved to here."""
        return image[:, max(top, 0) : height + min(top, 0), max(left, 0) : width + min(left, 0)]

    there, here, origin = part(y, down, right), part(x, down, right), part(x, -down, -right)
    if _error(origin, there) > EXPLAINED * _error(here, there):
        return None
    sides = [f"{abs(right)} {'right' if right > 0 else 'left'}"] if right else []
    sides += [f"{abs(down)} {'down' if down > 0 else 'up'}"] if down else []
    return f"shifted by pixels: {' and '.join(sides)}"


def _displacement(one: Tensor, other: Tensor) -> tuple[int, int]:
    """Rows down and columns right by which the second of two grey pictures is moved: the peak of the correlation."""
    product = torch.fft.rfft2(other - other.mean()) * torch.fft.rfft2(one - one.mean()).conj()
    peak = int(torch.fft.irfft2(product, s=one.shape).argmax())
    down, right = divmod(peak, one.shape[1])
    height, width = one.shape
    return (down - height if down > height // 2 else down), (right - width if right > width // 2 else right)


def _tone(x: Tensor, y: Tensor, error: float) -> str | None:
    """A gain and an offset for each channel, fitted."""
    flat_x, flat_y = x.flatten(1), y.flatten(1)
    centred = flat_x - flat_x.mean(1, keepdim=True)
    spread = centred.square().sum(1)
    gain = (centred * flat_y).sum(1) / spread.clamp_min(1e-12)
    offset = flat_y.mean(1) - gain * flat_x.mean(1)
    fitted = (gain[:, None] * flat_x + offset[:, None]).clamp(0, 1)
    if _error(fitted, flat_y) > EXPLAINED * error:
        return None
    moved = flat_y.mean(1) - flat_x.mean(1)
    shown = ", ".join(f"{value:+.2f}" for value in moved.tolist())
    if float(moved.max() - moved.min()) > 2 * float(moved.mean().abs()):
        return f"a colour cast (R, G, B moved by {shown})"
    return f"another brightness or contrast (gain {float(gain.mean()):.2f}, mean moved by {float(moved.mean()):+.2f})"
