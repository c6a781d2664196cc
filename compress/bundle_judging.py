"""A bundle end to end: the same prompts and seeds drawn by its files and by the float reference, measured and judged.

Latents that are not finite give a picture of NaN, which no gate passes, and a verdict of their own. Seconds are plain
wall time, the median over the prompts; where a gate asks for latency, whole drawings are timed in interleaved pairs.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from compress import evaluation
from compress.errors import UserError
from compress.generation import FLAT, Model
from compress.runs import Emit, Event
from compress.sampling.generator import Way, generate
from compress.sampling.series import draw_each
from compress.written import Gate
from eval import baseline as baselines
from eval import compare, gates
from eval.metrics import latency

BATCH = 4  # pictures compared at once
USUAL = (
    compare.Metric(name="lpips", net=gates.DEFAULT_NET),
    compare.Metric(name="psnr"),
    compare.Metric(name="ssim"),
)
LATENT_SQNR = compare.Metric(name="latent_sqnr")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """What one model drew, prompt by prompt."""

    images: torch.Tensor  # [n, 3, h, w] in [0, 1]; NaN where a prediction or a latent was not finite
    latents: torch.Tensor  # [n, steps, z, h/8, w/8], after each step
    seconds: float  # per picture: the median
    broken: tuple[str, ...]  # what was said of pictures that could not be drawn
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """Pictures of both, and what the gates say."""

    reference: Drawn
    candidate: Drawn
    measurements: tuple[compare.Measurement, ...]
    sizes: gates.Sizes
    latency: latency.LatencyRatio | None  # None: no gate asks for it
    verdicts: tuple[gates.Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate was."""
        return all(verdict.passed for verdict in self.verdicts)


def draw_all(model: Model, prompts: Sequence[str], way: Way, tell: Emit, name: str) -> Drawn:
    """One picture per prompt, the i-th with seed + i.

    Raises:
        UserError: what is asked for cannot be drawn at all.
    """

    def told(index: int, prompt: str) -> None:
        tell(Event(kind="progress", name=f"drawing: {name}", text=prompt, done=index, total=len(prompts)))

    found = draw_each(prompts, model.networks, model.settings, way, told)
    return Drawn(
        images=torch.from_numpy(found.images),
        latents=torch.from_numpy(found.latents),
        seconds=statistics.median(found.seconds) if found.seconds else math.nan,
        broken=found.broken,
        notes=found.notes,
    )


def require_sound(reference: Drawn) -> None:
    """Refuse a reference whose own pictures show nothing: what is compared with them proves nothing.

    Raises:
        UserError: says what they show.
    """
    if reference.broken:
        raise UserError(f"the reference itself does not draw {reference.broken[0]}")
    spread = reference.images.amax((1, 2, 3)) - reference.images.amin((1, 2, 3))
    flat = int((spread < FLAT).sum())
    if flat:
        raise UserError(
            f"{flat} of {len(spread)} pictures of the reference itself are of one flat colour: its decoder, "
            "latents.json and UNet are not of one training, or a file is damaged"
        )


def measured(reference: Drawn, candidate: Drawn, asked: Sequence[Gate]) -> tuple[compare.Measurement, ...]:
    """Every metric of every picture, and of the latents, to the reference's.

    Args:
        reference: What the float model drew.
        candidate: What is measured.
        asked: Gates, whose metrics are measured besides the usual ones.

    Raises:
        EvalError: a metric or the weights of its net are missing.
    """
    specs = evaluation.specs(asked)
    of_images = tuple(dict.fromkeys((*USUAL, *gates.metrics_of(specs))))
    pictures = compare.joined(
        compare.compare_drawn(theirs, ours, of_images)
        for theirs, ours in zip(reference.images.split(BATCH), candidate.images.split(BATCH), strict=True)
    )
    return (*pictures, *compare.compare_tensors(reference.latents, candidate.latents, (LATENT_SQNR,)))


def judge(
    reference: Drawn,
    candidate: Drawn,
    asked: Sequence[Gate],
    *,
    subject: str,
    sizes: gates.Sizes,
    ratio: latency.LatencyRatio | None = None,
    baseline: baselines.Comparison | None = None,
) -> Judged:
    """One verdict for each gate, one on the pictures' sanity, and one on what was not finite.

    Raises:
        EvalError: a metric or the weights of its net are missing.
    """
    found = measured(reference, candidate, asked)
    verdicts = gates.judge(
        evaluation.specs(asked), found, subject=subject, latency=ratio, sizes=sizes, baseline=baseline
    )
    return Judged(
        reference=reference,
        candidate=candidate,
        measurements=found,
        sizes=sizes,
        latency=ratio,
        verdicts=(*verdicts, _finite(candidate, subject)),
    )


def timed(
    reference: tuple[Model, Way], candidate: tuple[Model, Way], prompt: str, asked: Sequence[Gate], *, threads: int
) -> latency.LatencyRatio | None:
    """Whole drawings of one prompt in interleaved pairs, the reference in torch; None where no gate asks for it."""
    specs = [spec for spec in evaluation.specs(asked) if spec.metric == "latency"]
    if not specs:
        return None

    def work(model: Model, way: Way) -> Callable[[], object]:
        return lambda: generate([prompt], model.networks, model.settings, way)

    runtime = candidate[0].parts["unet"].partition(",")[0]
    return latency.paired_ratio(
        work(*reference),
        work(*candidate),
        sampling=latency.Sampling(
            seconds=evaluation.JUDGED_LATENCY_SECONDS, min_pairs=7, limits=gates.latency_limits(specs)
        ),
        runtime=f"whole drawings, {runtime} to torch",
        threads=threads,
    )


def digest_of(prompts: Sequence[str], way: Way, pixels: int) -> str:
    """SHA-256 of what was drawn: prompts, seeds, size."""
    said = {"prompts": list(prompts), "seed": way.seed, "pixels": pixels}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _finite(candidate: Drawn, subject: str) -> gates.Verdict:
    count, total = len(candidate.broken), len(candidate.images)
    text = f"{count} of {total} pictures could not be drawn: a prediction, a latent or a value was not finite"
    return gates.Verdict(
        subject=subject,
        metric="finite",
        net=None,
        statistic="pictures with values that are not finite",
        of="candidate",
        against="reference",
        kind="max",
        value=float(count),
        limit=0.0,
        passed=count == 0,
        unit="images",
        reason=f"failed: {text}: {candidate.broken[0]}" if count else f"all {total} pictures are finite",
    )
