"""One self-contained HTML page of a run: no network, the same bytes for the same record.

Styles, charts (SVG), pictures (PNG) and the script of the sliders are inside the page, so that it can be mailed,
printed and kept; it reads without the script. Everything that came from outside is escaped by the template engine or by
`svg.text`, and the page's own policy lets no other script run and nothing be loaded.
"""

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path

from eval.report import layers, pictures, svg, tables, tradeoff, trends
from eval.report.figures import amount, change, number, quantity
from eval.report.records import LatencySamples, PerImage, Picture, Report, Thumbnail

_OPEN_UP_TO = 8  # a list longer than this starts folded
_MANY_LANES = 40  # and a chart with more rows


def render(report: Report) -> str:
    """Draw the whole page as HTML text."""
    import jinja2
    import markupsafe

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["amount"] = amount
    templates.filters["printable"] = svg.printable
    templates.filters["drawn"] = markupsafe.Markup  # SVG text, escaped by eval.report.svg; and the script
    script = resources.files("eval.report").joinpath("templates/report.js").read_text(encoding="utf-8")
    return templates.get_template("report.html.j2").render(
        report=report,
        headline=tables.headline(report.passed, report.verdicts),
        facts=tables.fact_cells(report.facts),
        gates=tables.gate_lines(report.verdicts),
        stages=tables.stage_table(report.stages, report.lpips_net),
        stage_charts=tradeoff.stage_charts(report.stages),
        compared=tradeoff.compared(report.trade_off),
        layers=layers.layer_lines(report.layers),
        stage_tables=[layers.drawn(table) for table in report.tables],
        history=trends.trend_lines(report.history),
        achieved=tables.achieved_lines(report.achieved),
        open_up_to=_OPEN_UP_TO,
        many_lanes=_MANY_LANES,
        pictures=[_panels(picture) for picture in report.pictures],
        gain=pictures.GAIN,
        latency_chart=_latency_chart(report.latency),
        latency_words=_latency_words(report.latency),
        image_chart=_image_chart(report.per_image),
        strip=[_thumbnail(one) for one in report.strip],
        drawn=[_thumbnail(one) for one in report.drawn],
        script=script,
        script_digest=digest_of(f"\n{script}"),
    )


def digest_of(script: str) -> str:
    """What a page's Content-Security-Policy calls a script between its tags, every character of it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def write(report: Report, path: Path) -> Path:
    """Write the page so that `path` holds either the whole of it or what it held before.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(render(report).encode("utf-8", "replace"))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _panels(picture: Picture) -> dict[str, object]:
    """One row of four images with captions; the difference is candidate - reference."""
    panels = [
        ("original", "Original", picture.original),
        ("reference", "Reference", picture.reference),
        ("candidate", "Variant", picture.candidate),
        (
            "difference",
            f"Difference \u00d7 {pictures.GAIN}",
            pictures.difference(picture.reference, picture.candidate),
        ),
    ]
    height, width = picture.original.shape[:2]
    return {
        "name": picture.name,
        "why": picture.why,
        "score": picture.score,
        "width": width,
        "height": height,
        "panels": [(role, caption, pictures.data_address(pixels)) for role, caption, pixels in panels],
    }


def _thumbnail(one: Thumbnail) -> dict[str, object]:
    height, width = one.pixels.shape[:2]
    return {
        "name": one.name,
        "address": pictures.data_address(one.pixels),
        "width": width,
        "height": height,
        "value": quantity(one.value, one.unit),
        "change": change(one.drop, 0.0, one.unit),
    }


def _latency_chart(latency: LatencySamples | None) -> str:
    if latency is None:
        return ""
    rows = [
        svg.Strip(label="Reference", tone="reference", values=latency.reference_ms),
        svg.Strip(label="Variant", tone="variant", values=latency.candidate_ms),
    ]
    return svg.strips(rows, unit="ms", title="Latency of every sample, ms", from_zero=True)


def _latency_words(latency: LatencySamples | None) -> str:
    if latency is None:
        return "Latency was not measured."
    noise = "not measured" if latency.noise_floor is None else f"± {number(latency.noise_floor, 3)}"
    return (
        f"The variant takes {number(latency.ratio, 3)} of the reference's time "
        f"(interval {number(latency.low, 3)} to {number(latency.high, 3)}; noise floor {noise})."
    )


def _image_chart(per_image: PerImage | None) -> str:
    if per_image is None:
        return ""
    rows = [
        svg.Strip(label="Reference", tone="reference", values=per_image.reference_db, names=per_image.names),
        svg.Strip(label="Variant", tone="variant", values=per_image.candidate_db, names=per_image.names),
    ]
    return svg.strips([row for row in rows if row.values], unit="dB", title=f"{per_image.what}, dB")
