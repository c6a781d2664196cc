"""Pictures of a bundle as PNG: each as it is, and a sheet of all beside the reference's."""

import io

import numpy as np
import torch
from torch.nn import functional

from compress.report_pictures import pixels

LARGEST = 160  # pixels of one picture's side on the sheet
COLUMNS = 4  # pairs in a row
MOST = 16  # pairs on a sheet
GAP = 4


def png(image: torch.Tensor) -> bytes:
    """A picture [3, h, w] in [0, 1] in 8 bits."""
    return _encoded(pixels(image))


def sheet(reference: torch.Tensor, candidate: torch.Tensor) -> bytes:
    """Pairs in rows on white, left the reference's picture [n, 3, h, w], right the candidate's."""
    count = min(len(reference), MOST)
    pairs = torch.cat([_small(reference[:count]), _small(candidate[:count])], dim=3)
    height, width = pairs.shape[2] + GAP, pairs.shape[3] + GAP
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    page = np.full((rows * height - GAP, columns * width - GAP, 3), 255, np.uint8)
    for index, pair in enumerate(pairs):
        top, left = index // columns * height, index % columns * width
        page[top : top + height - GAP, left : left + width - GAP] = pixels(pair)
    return _encoded(page)


def _small(images: torch.Tensor) -> torch.Tensor:
    side = max(images.shape[2:])
    if side <= LARGEST:
        return images
    height, width = (max(1, round(length * LARGEST / side)) for length in images.shape[2:])
    return functional.adaptive_avg_pool2d(images, (height, width))


def _encoded(image: np.ndarray) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, format="PNG", optimize=True)
    return data.getvalue()
