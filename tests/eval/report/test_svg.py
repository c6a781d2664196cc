"""Charts: positions against arithmetic done here, the Pareto front against its definition, text against a parser."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.report import svg

VALUES = st.floats(allow_nan=True, allow_infinity=True, width=32)


def marks(drawing: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(drawing).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def point(x: float, y: float) -> svg.Point:
    return svg.Point(x=x, y=y, mark="1", label="p")


@given(st.text(), st.lists(VALUES, max_size=12), st.booleans())
def test_any_strip_is_xml_within_its_width(label: str, values: list[float], from_zero: bool) -> None:
    row = svg.Strip(label=label, tone="variant", values=tuple(values), names=tuple(label for _ in values))
    drawing = svg.strips([row, row], unit="ms", title=label, from_zero=from_zero)
    for circle in marks(drawing, "circle"):
        assert 0 <= float(circle.get("cx").rstrip("%")) <= 100
    assert drawing == svg.strips([row, row], unit="ms", title=label, from_zero=from_zero)


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12), st.text())
def test_any_scatter_is_xml_with_one_mark_per_finite_point(pairs: list[tuple[float, float]], label: str) -> None:
    points = [svg.Point(x=x, y=y, mark=label, label=label) for x, y in pairs]
    drawing = svg.scatter(points, x_label=label, y_label=label, title=label)
    finite = sum(math.isfinite(x) and math.isfinite(y) for x, y in pairs)
    assert len(marks(drawing, "circle")) == finite


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_pareto_front_by_definition(pairs: list[tuple[int, int]]) -> None:
    unbeaten = {(x, y) for x, y in pairs if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in pairs)}
    assert [(p.x, p.y) for p in svg.pareto_front([point(x, y) for x, y in pairs])] == sorted(unbeaten)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_and_evenly_spaced(low: float, width: float) -> None:
    found = svg.ticks(low, low + width)
    assert 2 <= len(found) <= 9
    slack = 1e-6 * width
    assert all(low - slack <= t <= low + width + slack for t in found)
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) <= 1e-6 * max(steps) + 1e-9


def test_dots_lie_where_their_values_are() -> None:
    drawing = svg.strips(
        [svg.Strip(label="a", tone="reference", values=(10.0, 20.0, 25.0))], unit="ms", title="t", from_zero=True
    )
    positions = [float(circle.get("cx").rstrip("%")) for circle in marks(drawing, "circle")]
    assert positions[1] - positions[0] == pytest.approx(10 * (positions[2] - positions[1]) / 5, abs=0.02)
    assert "median 20.0 ms" in "".join(ElementTree.fromstring(drawing).itertext())


def test_what_is_not_drawn_is_counted() -> None:
    row = svg.Strip(label="a", tone="variant", values=(10.0, 11.0, 12.0, 500.0, math.inf, math.nan))
    drawing = svg.strips([row], unit="ms", title="t", from_zero=True)
    assert len(marks(drawing, "circle")) == 3
    assert "1 beyond the axis · 1 exact (∞) · 1 NaN" in "".join(ElementTree.fromstring(drawing).itertext())


@pytest.mark.parametrize(
    ("value", "maximum", "width"),
    [(1, 4, "25.00%"), (0, 4, "0.00%"), (9, 4, "100.00%"), (1, 0, "0.00%"), (math.nan, 1, "0.00%")],
)
def test_bar_length(value: float, maximum: float, width: str) -> None:
    drawing = svg.bar(value, maximum, "t <&>")
    assert ElementTree.fromstring(drawing)[2].get("width") == width
