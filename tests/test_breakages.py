"""None of the ways to break a decoder passes the default gates, the sound one does, and docs/breakages.md says which
gate catches what. To write that page again: PYTHONPATH=.:tests python tests/test_breakages.py
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from breakages import BREAKAGES, Given

from calibration import images
from compress.components import find, load_variant, vae
from compress.evaluation import specs
from compress.recipe import read_recipe
from eval import compare, gates

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "breakages.md"
RECIPE = "decoder/d4_c50_kd_w8a8"
COUNT, PIXELS = 4, 112
HEAD = f"""# Thirty ways to break a decoder, and more

Made by `tests/test_breakages.py`, which breaks `md-tiny/decoder` in each of these ways, judges {COUNT} photographs of
{PIXELS} pixels by the gates of the default recipe (`{RECIPE}`; size and latency left out, which are not about
pictures), and fails if one passes, if the sound decoder does not, or if this page says anything else.

"""


def default_gates() -> tuple[gates.GateSpec, ...]:
    found = specs(read_recipe(ROOT / "recipes" / f"{RECIPE}.yaml").gates)
    return tuple(spec for spec in found if spec.metric not in ("latency", "size"))


def decode() -> Given:
    pytest.importorskip("skimage", reason="extra photographs is not installed")
    pytest.importorskip("sklearn", reason="extra photographs is not installed")
    truth = images.load("photographs", split="evaluation", count=COUNT, size=PIXELS).images
    decoder, encoder = (load_variant(find(f"md-tiny/{leaf}")).module for leaf in ("decoder", "encoder"))
    assert isinstance(decoder, vae.Decoder)
    with torch.no_grad():
        latents = encoder(truth)
        return Given(decoder=decoder, latents=latents, pictures=decoder(latents), truth=truth)


@pytest.fixture(scope="module")
def given() -> Given:
    return decode()


class Judge:
    """The default gates, with the reference measured once."""

    def __init__(self, given: Given) -> None:
        self.given, self.specs = given, default_gates()
        self.reference = [replace(one, of="reference") for one in self.measured(given.pictures)]

    def measured(self, pictures: torch.Tensor) -> tuple[compare.Measurement, ...]:
        return compare.compare(
            ground_truth=self.given.truth,
            reference=self.given.pictures,
            candidate=pictures,
            metrics=gates.metrics_of(self.specs),
            pairs=[("candidate", "ground_truth")],
        )

    def __call__(self, pictures: torch.Tensor) -> tuple[gates.Verdict, ...]:
        return gates.judge(self.specs, [*self.measured(pictures), *self.reference], subject="variant")


@pytest.fixture(scope="module")
def judge(given: Given) -> Judge:
    return Judge(given)


def row(name: str, verdicts: Sequence[gates.Verdict]) -> str:
    """One line of the page. Numbers that another processor could round otherwise are left out."""
    failed = [v for v in verdicts if not v.passed and v.metric != gates.SANITY]
    by_metric: dict[str, list[str]] = {}
    for v in failed:
        kind = "gain" if v.kind == "max_gain" else v.statistic
        by_metric.setdefault(v.metric, []).append(kind)
    caught = ", ".join(f"{metric} ({', '.join(kinds)})" for metric, kinds in by_metric.items())
    sanity = next(v for v in verdicts if v.metric == gates.SANITY)
    looks = "" if sanity.passed else re.sub(r"^.*?images look broken: ", "", sanity.reason)
    looks = looks.split(";")[0].removeprefix("candidate has ").removeprefix("candidate looks broken: ")
    looks = re.sub(r" in \d+ of \d+ values", "", re.sub(r" \([^()]*\d[^()]*\)|values in \[.*?expected: ", "", looks))
    return f"| {name} | {caught} | {re.sub(r'[0-9]+ %', 'some', looks)} |"


def page(judge: Judge, given: Given) -> str:
    rows = [row(name, judge(change(given))) for name, change in BREAKAGES.items()]
    table = ["| broken | caught by (psnr: mean, p5, worst drop) | the message says |", "|---|---|---|", *rows]
    return HEAD + "\n".join(table) + "\n"


def test_there_are_thirty_and_more() -> None:
    assert len(BREAKAGES) >= 30


def test_the_sound_decoder_passes_its_own_gates(given: Given, judge: Judge) -> None:
    verdicts = judge(given.pictures)
    assert [v.reason for v in verdicts if not v.passed] == []


def test_a_good_variant_is_not_called_broken(given: Given, judge: Judge) -> None:
    """Weights rounded to eight bits, a little noise, a little blur: what a compressed variant may look like."""
    quiet = torch.randn(given.pictures.shape, generator=torch.Generator().manual_seed(1))
    for pictures in (
        (given.pictures * 255).round() / 255,
        (given.pictures + 0.005 * quiet).clamp(0, 1),
        0.9 * given.pictures + 0.1 * torch.nn.functional.avg_pool2d(given.pictures, 3, 1, 1, count_include_pad=False),
    ):
        assert [v.reason for v in judge(pictures) if not v.passed] == []


def test_no_breakage_passes_and_the_page_says_which_gate_catches_it(given: Given, judge: Judge) -> None:
    found = page(judge, given)
    missed = [line for line in found.splitlines() if re.match(r"\| [^|]+ \|  \|", line)]
    assert missed == []
    assert PAGE.read_text(encoding="utf-8") == found


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(Judge(decode()), decode()), encoding="utf-8")
