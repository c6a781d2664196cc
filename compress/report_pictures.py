"""Which photographs a report shows, and how: the best, median and worst in full, all of them small."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from compress.evaluation import Basis, Measured
from eval import metrics
from eval.compare import Measurement
from eval.report import records

STRIP_MOST = 32  # photographs in the strip
STRIP_PIXELS = 96  # of the longer side


def values_of(measurements: Sequence[Measurement], metric: str, of: str = "candidate") -> tuple[float, ...]:
    """Values per sample of one metric: of pictures to ground truth, of other tensors to the reference."""
    against = "ground_truth" if metrics.is_image_metric(metric) else "reference"
    for m in measurements:
        if (m.metric, m.of, m.against) == (metric, of, against):
            return m.values
    return ()


def in_full(basis: Basis, measurements: Sequence[Measurement], made: torch.Tensor) -> tuple[records.Picture, ...]:
    """The photographs on which the candidate lost least, a median amount, and most; none of other tensors."""
    ours, drops, truth = values_of(measurements, "psnr"), _drops(measurements), basis.truth
    if truth is None or not drops:
        return ()
    order = sorted(range(len(drops)), key=drops.__getitem__)
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return tuple(
        records.Picture(
            name=basis.names[i],
            why=why,
            score=_score(ours[i], drops[i]),
            original=pixels(truth[i]),
            reference=pixels(basis.reference[i]),
            candidate=pixels(made[i]),
        )
        for why, i in chosen.items()
    )


def strip(basis: Basis, measurements: Sequence[Measurement], made: torch.Tensor) -> tuple[records.Thumbnail, ...]:
    """Every photograph small, the largest loss first, as many as there is room for."""
    ours, drops = values_of(measurements, "psnr"), _drops(measurements)
    order = sorted(range(len(drops)), key=lambda i: -drops[i])[:STRIP_MOST]
    return tuple(
        records.Thumbnail(
            name=basis.names[i],
            pixels=reduced(pixels(made[i])),
            value=None if math.isnan(ours[i]) else ours[i],
            drop=drops[i] if math.isfinite(drops[i]) else None,
        )
        for i in order
    )


def drawn(measured: Measured) -> tuple[records.Thumbnail, ...]:
    """What the model draws: the reference's picture beside the variant's, the least alike first."""
    sheet, mine = measured.basis.sheet, measured.final.drawn
    if sheet is None or mine is None:
        return ()
    found = next(m for m in measured.final.measurements if (m.metric, m.against) == ("psnr", "reference"))
    order = sorted(range(len(mine)), key=lambda i: -math.inf if math.isnan(found.values[i]) else found.values[i])
    return tuple(
        records.Thumbnail(
            name=sheet.prompts[i],
            pixels=np.concatenate([reduced(pixels(one[i])) for one in (sheet.images, mine)], axis=1),
            value=None if math.isnan(found.values[i]) else found.values[i],
            drop=None,
        )
        for i in order[:STRIP_MOST]
    )


def pixels(image: torch.Tensor) -> np.ndarray:
    """[3, h, w] in [0, 1] to uint8 [h, w, 3]; NaN becomes black, as a screen would show it."""
    return (image.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def reduced(image: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3] with a longer side of at most STRIP_PIXELS."""
    from PIL import Image

    height, width = image.shape[:2]
    share = min(1.0, STRIP_PIXELS / max(height, width))
    size = (max(1, round(share * width)), max(1, round(share * height)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))


def _drops(measurements: Sequence[Measurement]) -> list[float]:
    """PSNR that each photograph loses against the reference, in dB; infinite where that is no number."""
    ours, theirs = values_of(measurements, "psnr"), values_of(measurements, "psnr", "reference")
    return [t - o if math.isfinite(t - o) else math.inf for o, t in zip(ours, theirs, strict=True)]


def _score(psnr_db: float, drop_db: float) -> str:
    side = "below" if drop_db >= 0 else "above"
    return f"PSNR {psnr_db:.2f} dB, {abs(drop_db):.2f} dB {side} the reference"
