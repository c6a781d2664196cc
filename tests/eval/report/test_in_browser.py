"""The page in Chromium, where one is installed: sliders, keys, print, a phone, the dark, and without a script."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser

from eval.report.page import write
from eval.report.records import Picture, Report, StageRow, VerdictRow

SHOWN = "e => e.checkVisibility()"
CUT = "getComputedStyle(document.querySelector('.pair img:last-of-type')).clipPath"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def shade(level: int) -> np.ndarray:
        return np.full((48, 64, 3), level, dtype=np.uint8)

    picture: dict[str, Any] = {"original": shade(100), "reference": shade(110), "candidate": shade(160)}
    whole = Report(
        title="decoder/" + "long_name_" * 8,
        component="md-tiny/decoder",
        passed=True,
        verdicts=(
            VerdictRow(
                subject="variant", metric="psnr", statistic="mean", against="reference", kind="max_drop", value=0.3,
                limit=0.5, passed=True, unit="dB", reason="drops 0.31 dB",
            ),
        ),
        stages=tuple(StageRow(method=f"m{i}", bytes=900 - i, psnr_db=27.0 - i, latency_ms=9.0) for i in range(3)),
        pictures=tuple(Picture(name=name, why="best", score="", **picture) for name in ("a", "b")),
        recipe="schema: 1\n" * 3,
    )  # fmt: skip
    return write(whole, tmp_path_factory.mktemp("page") / "report.html")


def test_a_slider_cuts_by_key_and_by_pointer(report: Path, browser: Browser) -> None:
    page = browser.open(report)
    assert page.value(f"[...document.querySelectorAll('.slider')].filter({SHOWN}).length") == 2
    assert page.value(CUT) == "inset(0px 50% 0px 0px)"
    page.value("document.querySelector('.slider input').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    assert page.value("document.activeElement.value") == "53"
    assert page.value(CUT) == "inset(0px 47% 0px 0px)"
    assert page.value("document.activeElement.getAttribute('aria-valuetext')") == "cut at 53 per cent"
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.click(".pair")
    assert page.value(CUT) == "inset(0px 50% 0px 0px)"
    assert page.errors() == []
    assert page.requests() == [report.resolve().as_uri()]


def test_the_tab_key_reaches_links_tables_and_sliders(report: Path, browser: Browser) -> None:
    page, reached = browser.open(report), []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.value("document.activeElement.tagName + '.' + document.activeElement.className"))
        if reached[-1].startswith("BODY"):
            break
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") in ("solid", "auto"), reached[-1]
    names = {name.partition(".")[0] for name in reached}
    assert {"A", "DIV", "INPUT", "SUMMARY"} <= names, reached


def test_without_a_script_and_in_print_the_pictures_stand_side_by_side(report: Path, browser: Browser) -> None:
    page = browser.open(report, scripts=False)
    document = page.call("DOM.getDocument")["root"]["nodeId"]
    images = page.call("DOM.querySelectorAll", nodeId=document, selector=".panels img")["nodeIds"]
    boxes = [page.call("DOM.getBoxModel", nodeId=node)["model"]["content"] for node in images[:4]]
    assert len(images) == 8
    assert len({box[1] for box in boxes}) == 1  # one line
    assert boxes[0][0] < boxes[1][0] < boxes[2][0]
    (slider, _) = page.call("DOM.querySelectorAll", nodeId=document, selector=".slider")["nodeIds"]
    assert page.call("DOM.describeNode", nodeId=slider)["node"].get("childNodeCount", 0) == 0

    printed = browser.open(report)
    printed.call("Emulation.setEmulatedMedia", media="print")
    assert printed.value(f"[...document.querySelectorAll('.slider')].filter({SHOWN}).length") == 0
    assert printed.value(f"[...document.querySelectorAll('.panels img')].filter({SHOWN}).length") == 8
    assert printed.value("document.querySelector('#origin pre').checkVisibility({contentVisibilityAuto: true})")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_and_the_dark(dark: bool, report: Path, browser: Browser) -> None:
    page = browser.open(report, width=390, height=844, dark=dark)
    assert page.value("document.documentElement.scrollWidth") == 390
    red, _, _ = page.value("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert (red < 64) is dark
    assert page.errors() == []
