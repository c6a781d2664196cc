"""One self-contained HTML page of a run: no script, no network, the same bytes for the same record.

Styles, charts (SVG) and pictures (PNG) are inside the page, so that it can be mailed, printed and kept.
Everything that came from outside is escaped by the template engine or by `svg.text`.
"""

import os
from pathlib import Path

from eval.report import pictures, svg, tables
from eval.report.figures import amount, number
from eval.report.records import LatencySamples, PerImage, Picture, Report

_OPEN_UP_TO = 8  # a list longer than this starts folded


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
    templates.filters["drawn"] = markupsafe.Markup  # SVG text, escaped by eval.report.svg
    return templates.get_template("report.html.j2").render(
        report=report,
        headline=tables.headline(report.passed, report.verdicts),
        facts=tables.fact_cells(report.facts),
        gates=tables.gate_lines(report.verdicts),
        stages=tables.stage_table(report.stages, report.lpips_net),
        scatter=tables.stage_scatter(report.stages),
        achieved=tables.achieved_lines(report.achieved),
        open_up_to=_OPEN_UP_TO,
        pictures=[_panels(picture) for picture in report.pictures],
        gain=pictures.GAIN,
        latency_chart=_latency_chart(report.latency),
        latency_words=_latency_words(report.latency),
        image_chart=_image_chart(report.per_image),
    )


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
        ("Original", picture.original),
        ("Reference", picture.reference),
        ("Variant", picture.candidate),
        (f"Difference \u00d7 {pictures.GAIN}", pictures.difference(picture.reference, picture.candidate)),
    ]
    height, width = picture.original.shape[:2]
    return {
        "name": picture.name,
        "why": picture.why,
        "score": picture.score,
        "width": width,
        "height": height,
        "panels": [(caption, pictures.data_address(pixels)) for caption, pixels in panels],
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
