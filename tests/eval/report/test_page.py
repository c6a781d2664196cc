"""The page against the browser's view of it: parsed as HTML, with its styles, pictures and charts read back."""

import base64
import dataclasses
import hashlib
import io
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.report.figures import MINUS
from eval.report.page import render, write
from eval.report.records import (
    AchievedRow,
    Contender,
    Fact,
    History,
    LatencySamples,
    LayerRow,
    PerImage,
    Picture,
    Report,
    Series,
    SkippedRow,
    StageRow,
    StageTable,
    Thumbnail,
    TradeOff,
    VerdictRow,
)

HOSTILE = """<script>alert("1")</script>'&\x00\ud800"""
VOID = {"meta", "img", "input", "br", "hr", "link"}
SHADES = ("text", "muted", "accent", "fail", "zoo")


class Nesting(HTMLParser):
    """Checks that every element is closed in order; keeps tags, attributes and the text of the body."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += f"{data} "


def parsed(page: str) -> Nesting:
    parser = Nesting()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def words(page: str) -> str:
    return " ".join(parsed(page).text.split())


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def verdict(**changes: object) -> VerdictRow:
    row = VerdictRow(
        subject="variant", metric="psnr", statistic="mean", against="reference", kind="max_drop", value=0.31, limit=0.5,
        passed=True, unit="dB", reason="drops 0.31 dB",
    )  # fmt: skip
    return dataclasses.replace(row, **changes)


def full_report(name: str = "decoder/x") -> Report:
    """One of everything, every text being `name`."""
    return Report(
        title=name,
        component=name,
        passed=True,
        verdicts=(verdict(), verdict(subject=name, reason=name, net=name, metric=name, kind=name)),
        created=name,
        facts=(Fact(label=name, unit="parameters", reference=2_071_234, variant=412_338),),
        stages=(
            StageRow(method="reference", bytes=8_284_936, psnr_db=27.93, latency_ms=41.2),
            StageRow(method=name, config=name, seconds=3.0, cached=True, bytes=431_004, psnr_db=27.62, latency_ms=None),
        ),
        lpips_net=name,
        achieved=(AchievedRow(stage=name, what=name, requested=4, achieved=3.5, unit=name, met=False),),
        skipped=(SkippedRow(stage=name, module=name, reason=name),),
        pictures=(
            Picture(name=name, why=name, score=name, original=pixels(0), reference=pixels(1), candidate=pixels(2)),
        ),
        latency=LatencySamples(
            reference_ms=(40.0, 41.0, 42.0),
            candidate_ms=(16.0, 17.0, 160.0),
            ratio=0.41,
            low=0.4,
            high=0.42,
            noise_floor=None,
            host=name,
            runtime=name,
        ),
        per_image=PerImage(names=(name, "b"), reference_db=(27.0, 28.0), candidate_db=(26.0, math.inf)),
        strip=(Thumbnail(name=name, pixels=pixels(3), value=26.0, drop=1.0, unit="dB"),),
        strip_left_out=3,
        trade_off=TradeOff(
            quality="PSNR, dB",
            unit="dB",
            contenders=(
                Contender(name="uncompressed", group="reference", quality=27.5, bytes=8_000_000, ratio=1.0),
                Contender(name="ours", group="run", quality=27.1, bytes=400_000, ratio=0.4, runtime=name),
                Contender(name=name, group="zoo", quality=26.0, bytes=500_000, ratio=0.3),
                Contender(name=f"{name} 2", group="zoo", quality=26.5, bytes=300_000, ratio=None),
            ),
            left_out=((name, name),),
        ),
        layers=(
            LayerRow(name=name, kind=name, weights=name, parameters=432, macs=1_000, bytes=448, reference_bytes=1_728),
        ),
        layers_removed=(name,),
        tables=(
            StageTable(
                stage=name,
                title=name,
                columns=(name, "mse alone, 4 bits", "mse alone, 8 bits", "bits", "cost"),
                rows=((name, 1e-3, 1e-6, 8, None), ("b", 2e-5, None, 4, 3)),
            ),
        ),
        history=History(
            source=name,
            series=(
                Series(label=name, unit="dB", values=(27.0, None, 26.5, 26.0), comparable=(False, True, True, True)),
            ),
            differing=(name,),
        ),
        environment={name: name},
        notes=(name,),
        recipe=name,
    )


def empty_report(**changes: object) -> Report:
    return dataclasses.replace(Report(title="t", component="c", passed=True, verdicts=()), **changes)


@pytest.mark.parametrize(
    "report", [full_report(), full_report(HOSTILE), empty_report()], ids=["full", "hostile", "empty"]
)
def test_html_nests_and_every_chart_is_xml(report: Report) -> None:
    page = render(report)
    parsed(page)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert bool(charts) == bool(report.stages)
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.tag.endswith("svg")
        assert root.find("{*}title") is not None


def test_same_record_same_bytes() -> None:
    assert render(full_report()) == render(full_report())


def test_a_hostile_name_stays_text() -> None:
    page = parsed(render(full_report(HOSTILE)))
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # the page's own
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on") or a.startswith("alert")]
    assert page.text.count('<script>alert("1")</script>') >= 20  # shown as what it is, everywhere a name is shown


def test_nothing_is_loaded() -> None:
    page = render(full_report())
    for _, attrs in parsed(page).tags:
        for name in ("src", "href", "srcset", "poster", "data", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert {tag for tag, _ in parsed(page).tags}.isdisjoint({"link", "iframe", "object", "embed"})
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for tag, a in parsed(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_every_link_inside_the_page_arrives() -> None:
    tags = parsed(render(empty_report())).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"].removeprefix("#") for tag, attrs in tags if tag == "a"}
    targets |= {attrs["aria-labelledby"] for _, attrs in tags if "aria-labelledby" in attrs}
    assert targets <= set(ids)


def test_every_verdict_is_there_and_failed_ones_lead_in_words() -> None:
    rows = [verdict(reason=f"reason-{i}-", passed=i not in (3, 5), metric=("psnr", "ssim")[i % 2]) for i in range(9)]
    text = words(render(empty_report(passed=False, verdicts=tuple(rows))))
    assert "Failed 2 of 9 gates: SSIM drop (mean, variant), SSIM drop (mean, variant)." in text
    assert text.count("✓ passed") == 7
    assert text.count("✗ failed") == 2
    order = [int(i) for i in re.findall(r"reason-(\d)-", text)]
    assert order == [3, 5, 0, 1, 2, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (empty_report(verdicts=(verdict(),) * 9), "Passed 9 of 9 gates."),
        (empty_report(verdicts=(verdict(),)), "Passed 1 of 1 gate."),
        (
            empty_report(verdicts=(verdict(passed=False),) * 5, passed=False),
            "Failed 5 of 5 gates: " + "PSNR drop (mean, variant), " * 2,
        ),
        (empty_report(verdicts=(verdict(passed=False),) * 5, passed=False), "PSNR drop (mean, variant) and 2 more."),
        (empty_report(verdicts=(verdict(),), passed=False), "Failed, although 1 gate of 1 passed"),
        (empty_report(passed=False), "Failed: no gates were judged."),
        (empty_report(), "No gates were judged."),
    ],
)
def test_headline(report: Report, sentence: str) -> None:
    assert sentence.strip() in words(render(report))


def test_missing_nan_and_infinite_are_words() -> None:
    rows = (
        verdict(value=None, passed=False, reason="r1"),
        verdict(value=math.nan, passed=False, reason="r2"),
        verdict(value=None, exact=True, reason="r3"),
        verdict(value=math.inf, kind="min", reason="r4"),
    )
    text = words(render(empty_report(verdicts=rows, passed=False)))
    assert "not measured ≤ 0.50 dB r1" in text
    assert "NaN ≤ 0.50 dB r2" in text
    assert "exact ≤ 0.50 dB r3" in text
    assert "∞ ≥ 0.50 dB r4" in text
    assert "Latency was not measured." in text
    for absent in ("No stages were recorded.", "No pictures were kept.", "No module was skipped."):
        assert absent in text


def test_a_stage_that_came_as_near_as_its_steps_allow_is_not_said_to_be_above() -> None:
    asked = {"metric": "achieved", "kind": "min", "unit": "channels", "value": 808.0, "limit": 810.0}
    near, short = verdict(**asked, reason="r1"), verdict(**asked, passed=False, reason="r2")
    text = words(render(empty_report(verdicts=(near, short), passed=False)))
    assert "808 ≈ 810 r1" in text
    assert "808 ≥ 810 \N{MINUS SIGN}2 r2" in text


def test_unmeasured_stage_values_are_named() -> None:
    text = words(render(full_report()))
    assert "Not measured at any stage: Parameters, MACs, LPIPS (decoder/x)." in text
    assert "1 decoder/x decoder/x 0.41 \u221294.8 %" in text  # MiB, the scale of the column's largest
    assert "27.62 \u22120.31 dB not measured 3.0 s (cached)" in text


def test_verdict_shows_room_interval_and_limit() -> None:
    row = verdict(
        metric="latency", kind="max_ratio", value=0.562, low=0.541, high=0.588, limit=0.5, unit="", passed=False
    )
    text = words(render(empty_report(verdicts=(row,), passed=False)))
    assert "latency ratio mean, against reference variant 0.562 0.541 to 0.588 ≤ 0.500 \u22120.062" in text


def test_an_undecided_gate_is_called_that_whichever_way_it_counts() -> None:
    rows = (verdict(passed=False, undecided=True), verdict(undecided=True), verdict())
    page = render(empty_report(verdicts=rows, passed=False))
    states = re.findall(r'<span class="mark"><span aria-hidden="true">(.)</span> ([a-z, ]+)</span>', page)
    assert states == [
        ("✗", "undecided"),
        ("✓", "passed, undecided"),
        ("✓", "passed"),
    ]


def test_images_are_lossless_and_the_difference_is_eight_fold_around_grey() -> None:
    report = full_report()
    addresses = [attrs["src"] for tag, attrs in parsed(render(report)).tags if tag == "img"]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(a.split(",")[1])))) for a in addresses]
    picture = report.pictures[0]
    for array, original in zip(shown, (picture.original, picture.reference, picture.candidate), strict=False):
        np.testing.assert_array_equal(array, original)
    for index in np.ndindex(4, 4, 3):
        expected = 128 + 8 * (int(picture.candidate[index]) - int(picture.reference[index]))
        assert shown[3][index] == min(255, max(0, expected))


def test_files_are_compared_with_the_zoo_and_the_front_is_named() -> None:
    text = words(render(full_report("zoo/x")))
    assert "R uncompressed uncompressed 27.50 dB 7.63 MiB 1.000 size and latency" in text
    assert "1 ours this run zoo/x 27.10 dB 391 KiB 0.400 size and latency" in text
    assert "A zoo/x zoo 26.00 dB 488 KiB 0.300 latency" in text  # beaten in size by both of the others
    assert "B zoo/x 2 zoo 26.50 dB 293 KiB not measured size" in text
    assert "Not compared (1) zoo/x: zoo/x" in text


def test_layers_tables_strip_and_history_are_read() -> None:
    text = " ".join(re.sub(r"<svg.*?</svg>", "", render(full_report("n")), flags=re.DOTALL).split())
    text = words(text)
    assert "n n n 432 1.00 k 448 B was 1.69 KiB" in text
    assert "Layers that only the reference has (1) n" in text
    assert "n mse alone, 4 bits mse alone, 8 bits bits cost n 0.001000 1.000e-06 8 not measured" in text
    assert "4: 4 bits, 8: 8 bits. The filled mark was chosen" in text
    assert f"26.00 dB {MINUS}1.00 dB" in text
    assert "The 3 that lose least are left out." in text
    assert f"26.50 dB 26.00 dB {MINUS}0.50 dB" in text


def test_what_was_not_measured_leaves_no_section() -> None:
    ids = {attrs.get("id") for _, attrs in parsed(render(empty_report())).tags}
    assert not {"trade-off", "layers", "history"} & ids
    alone = StageTable(stage="s", title="t", columns=("layer", "cost"), rows=(("a", 1),))
    page = render(empty_report(tables=(alone,)))
    assert "layers" in {attrs.get("id") for _, attrs in parsed(page).tags}
    assert 'class="option' not in page


def test_a_baseline_under_other_conditions_gives_no_change() -> None:
    one = Series(label="psnr", unit="dB", values=(30.0, 20.0), comparable=(False, True))
    text = words(render(empty_report(history=History(source="b.json", series=(one,), differing=("another host",)))))
    assert "psnr 30.00 dB 20.00 dB" in " ".join(
        text.replace("psnr, oldest first: 30.00 (other conditions), 20.00", "").split()
    )
    assert "10.00" not in text
    assert "another host" in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: verdict(value=math.nan),
        lambda: verdict(value=None),
        lambda: empty_report(verdicts=(verdict(passed=False),)),
        lambda: StageTable(stage="s", title="values", columns=("a",), rows=(("b", 1),)),
        lambda: Series(label="values", unit="", values=(1.0,), comparable=(True,)),
        lambda: PerImage(names=("a",), reference_db=(1.0, 2.0), candidate_db=(1.0,)),
        lambda: dataclasses.replace(full_report().pictures[0], candidate=pixels(0)[:8]),
        lambda: dataclasses.replace(full_report().pictures[0], candidate=pixels(0).astype(np.float32)),
    ],
    ids=[
        "nan passed",
        "missing passed",
        "green page, red row",
        "ragged",
        "no baseline",
        "unpaired",
        "other size",
        "float picture",
    ],
)
def test_records_that_contradict_themselves_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"passed|values|uint8"):
        make()


def test_write_leaves_the_old_page_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "report.html"
    assert write(full_report(HOSTILE), path) == path
    before = path.read_bytes()
    assert before.decode("utf-8").endswith("</html>\n")

    def full_disk(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(empty_report(), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def luminance(colour: str) -> float:
    """WCAG 2.1 relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast_reaches_aa(theme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render(empty_report()), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[theme]))
    pairs = [(ink, ground) for ink in SHADES for ground in ("page", "panel")]
    pairs += [("text", "fail-soft"), ("fail", "fail-soft"), ("text", "accent-soft"), ("accent", "accent-soft")]
    for ink, ground in pairs:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)
