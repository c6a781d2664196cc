"""One picture file to 8-bit RGB pixels, whatever its mode: rotated by its EXIF tag, transparency put on white.

Differs: colour profiles are not applied (the numbers are taken as sRGB), 16-bit colour is cut to 8 bits by Pillow, and
of an animation or a multi-page file the first frame is taken.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from calibration.errors import DataError

# All that Pillow's decoders are known to raise on damaged bytes.
UNREADABLE = (
    OSError,
    RuntimeError,  # AVIF
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoded:
    """The pixels of one picture, and what was done to them that a reader should know (None: nothing)."""

    pixels: UInt8[np.ndarray, "height width 3"]
    note: str | None = None


def decode(data: bytes) -> Decoded:
    """Decode the bytes of one picture file.

    Raises:
        DataError: the bytes cannot be decoded as a whole, or their values have no known range; the message is the
            reason.
    """
    if not data:
        raise DataError("empty file (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and of large pictures; the pixels decide here
        try:
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                turned = ImageOps.exif_transpose(opened)
        except UnidentifiedImageError as error:
            raise DataError("not a picture that Pillow can decode") from error
        except UNREADABLE as error:
            raise DataError(f"cannot be decoded: {error}") from error
        image, note = _without_alpha(_eight_bit(turned))
        return Decoded(pixels=np.asarray(image.convert("RGB")), note=note)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits becomes grey of 8; Pillow's own conversion would clip everything above 255 to white."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("grey values outside 0 to 65535; save it with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError("floating-point pixels without a known range; save it with 8 or 16 bits")
    return image


def _without_alpha(image: Image.Image) -> tuple[Image.Image, str | None]:
    if not image.has_transparency_data:
        return image, None
    layers = image.convert("RGBA")
    if layers.getchannel("A").getextrema()[0] == 255:
        return layers, None
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers), "transparency put on white"
