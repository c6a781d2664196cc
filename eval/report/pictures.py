"""Pictures inside the page: PNG as data addresses, and the difference image.

The difference is signed and amplified: 128 + 8 * (candidate - reference) per channel, clipped to 0..255. Mid grey means
equal; brighter means that the candidate is brighter. One grey level of error is 8 levels here, 16 saturate.
"""

import base64
import io

import numpy as np
from PIL import Image

GAIN = 8
GREY = 128


def difference(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Amplify candidate - reference around mid grey; uint8 arrays [height, width, 3] in and out."""
    signed = candidate.astype(np.int16) - reference.astype(np.int16)
    return np.clip(GREY + GAIN * signed, 0, 255).astype(np.uint8)


def data_address(pixels: np.ndarray) -> str:
    """Encode uint8 [height, width, 3] without loss as a `data:image/png;base64,` address."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
