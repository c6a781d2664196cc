"""A stage's table as a chart: which columns, which marks, which one was chosen, at the place of its value."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from eval.report.layers import alternatives, drawn
from eval.report.records import StageTable

MEASURED = ("layer", "weights", "mse alone, 4 bits", "mse alone, 8 bits", "lpips alone, 4 bits", "mse spared", "bits")
ROWS = (
    ("conv_in", 432, 1e-2, 1e-5, 0.3, 0.1, 8),
    ("up.0", 9216, 1e-3, 1e-6, 0.1, 0.1, 4),
    ("last", 10, 1e-4, None, None, 0.0, 32),
)


def table(columns=MEASURED, rows=ROWS):
    return StageTable(stage="quantize.mixed", title="t", columns=columns, rows=rows)


def options(chart):
    """(mark, x in per cent, chosen) of everything drawn, from the top."""
    groups = ElementTree.fromstring(chart.drawing).iter("{http://www.w3.org/2000/svg}g")
    found = []
    for group in groups:
        circle, text = group.find("{*}circle"), group.find("{*}text")
        key = (float(circle.get("cy")), float(circle.get("cx").rstrip("%")))
        found.append((*key, text.text, "chosen" in group.get("class")))
    return [(mark, x, chosen) for _, x, mark, chosen in sorted(found)]


def test_quantities_of_several_alternatives_are_charts_of_their_own():
    assert alternatives(table()) == {"mse alone": (2, 3), "lpips alone": (4,)}
    mse, lpips = drawn(table()).charts
    assert (mse.what, mse.key) == ("mse alone", "4: 4 bits, 8: 8 bits")
    assert [(mark, chosen) for mark, _, chosen in options(mse)] == [
        ("8", True), ("4", False),  # conv_in: less error lies further left
        ("8", False), ("4", True),
        ("4", False),  # in float: nothing is filled
    ]  # fmt: skip
    assert len(options(lpips)) == 2
    assert alternatives(table(columns=("layer", *"abcdef"))) == {}


def test_marks_lie_at_the_logarithm_of_their_values():
    places = {(mark, round(x, 2)) for mark, x, _ in options(drawn(table()).charts[0])}
    values = sorted(math.log10(v) for row in ROWS for v in row[2:4] if v)
    xs = sorted(x for _, x in places)
    slope = (xs[-1] - xs[0]) / (values[-1] - values[0])
    for x, value in zip(xs, values, strict=True):
        assert x == pytest.approx(xs[0] + slope * (value - values[0]), abs=0.02)
    assert 2 <= xs[0] < xs[-1] <= 98


def test_activations_are_told_apart():
    columns = ("layer", "mse alone, 8 bits", "mse alone, 8 bits, 8-bit activations", "bits", "activation bits")
    (chart,) = drawn(table(columns, (("a", 1e-3, 1e-2, 8, 8), ("b", 1e-3, 1e-2, 8, 32)))).charts
    assert chart.key == "8a: 8 bits, 8b: 8 bits, 8-bit activations"
    assert [(mark, chosen) for mark, _, chosen in options(chart)] == [
        ("8a", False), ("8b", True), ("8a", True), ("8b", False),
    ]  # fmt: skip


def test_zeros_and_nothing_are_no_marks():
    columns = ("layer", "mse alone, 4 bits")
    assert options(drawn(table(columns, (("a", 0.0), ("b", None)))).charts[0]) == []
    (chart,) = drawn(table(columns, (("a", 0.0), ("b", 2.0)))).charts
    assert [mark for mark, _, _ in options(chart)] == ["4"]
