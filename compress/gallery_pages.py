"""The pages of a gallery as HTML text; everything that came out of a card or an index is escaped."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import quote

from compress.comparable import EVALUATED, TIMING, Quality, number, quality_of
from compress.errors import UserError
from compress.zoo_index import Card, CardSample, File
from eval.report import page, svg, tables
from eval.report import records as rows
from eval.report.figures import exact, quantity, scale
from eval.report.figures import number as written
from eval.report.tradeoff import letters


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One entry as the site shows it."""

    name: str
    card: Card
    recipe: str
    files: Mapping[str, File]  # as the index lists them
    preview: tuple[str, int, int] | None  # file, width, height

    @property
    def artifacts(self) -> dict[str, File]:
        """The files that somebody downloads to use them."""
        return {name: file for name, file in self.files.items() if name in self.card.files}

    @property
    def formats(self) -> tuple[str, ...]:
        """What can load its files."""
        return self.card.formats

    def is_setting(self, file: str) -> bool:
        """Whether a file of a bundle is one of the settings beside its three parts."""
        return self.card.is_bundle and "/" not in file and file.endswith(".json")

    @property
    def bytes(self) -> int:
        """What the charts and the filters count: the file that the card's figures are of, else the largest file."""
        known = number(self.card.facts.get("bytes"))
        return int(known) if known is not None else max((f.bytes for f in self.artifacts.values()), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Entries that may be compared, as charts."""

    component: str
    charts: tuple[str, ...]
    marks: tuple[tuple[str, str, str], ...]  # mark, entry, address of its page


def front_page(shown: Sequence[Shown], title: str) -> str:
    """index.html: filters, cards and plots."""
    return _render(
        "gallery.html.j2",
        title=title,
        entries=[_summary(one) for one in shown],
        components=sorted({one.card.component for one in shown}),
        formats=sorted({form for one in shown for form in one.formats}),
        plots=plots(shown),
        unplotted=[one.name for one in shown if not _may_be_plotted(one)],
        total=quantity(sum(f.bytes for one in shown for f in one.files.values()), "bytes"),
        script=_script(),
        script_digest=page.digest_of(f"\n{_script()}"),
    )


def entry_page(one: Shown, title: str) -> str:
    """entries/<name>/index.html: the model card."""
    up = "../" * (one.name.count("/") + 2)
    return _render(
        "gallery_entry.html.j2",
        title=title,
        up=up,
        entry=_summary(one, up),
        card=one.card,
        gates=tables.gate_lines([_verdict(one, verdict) for verdict in one.card.verdicts]),
        facts=[(key, _fact(value)) for key, value in sorted(one.card.facts.items())],
        files=[_file(one, name, up) for name in sorted(one.files, key=lambda f: (f not in one.card.files, f))],
        recipe=one.recipe,
        limits=_limits,
    )


def plots(shown: Sequence[Shown]) -> tuple[Plot, ...]:
    """For each component and set of inputs, quality against bytes and, of the most entries on one host, latency."""
    groups: dict[tuple[str, ...], list[Shown]] = defaultdict(list)
    for one in shown:
        if _may_be_plotted(one):
            quality = quality_of(one.card.facts)
            assert quality is not None
            facts = one.card.facts
            groups[one.card.component, quality.words, str(facts[EVALUATED]), str(facts[quality.definition])].append(one)
    return tuple(_plot(key[0], group) for key, group in sorted(groups.items()) if len(group) > 1)


def _may_be_plotted(one: Shown) -> bool:
    quality = quality_of(one.card.facts)
    return quality is not None and {EVALUATED, quality.definition} <= one.card.facts.keys()


def _plot(component: str, group: Sequence[Shown]) -> Plot:
    quality = quality_of(group[0].card.facts)
    assert quality is not None
    marks = {one.name: letters(index) for index, one in enumerate(group)}
    divisor, suffix = scale([one.bytes for one in group], "bytes")
    timed = _on_one_host(group)
    axes = (
        ([(one, one.bytes / divisor) for one in group], f"file size, {suffix}", "Quality against file size"),
        (
            [(one, float(one.card.facts["latency_ratio"])) for one in timed],
            "latency, ratio to the uncompressed model",
            f"Quality against latency, {timed[0].card.facts['latency_runtime']}" if timed else "",
        ),
    )
    charts = tuple(
        svg.scatter(
            [_point(one, x, marks[one.name], quality) for one, x in placed],
            x_label=label,
            y_label=quality.words,
            title=f"{component}: {heading}",
        )
        for placed, label, heading in axes
        if len(placed) > 1
    )
    legend = tuple((marks[one.name], one.name, _address(one.name)) for one in group)
    return Plot(component=component, charts=charts, marks=legend)


def _on_one_host(group: Sequence[Shown]) -> list[Shown]:
    """The entries whose latency may be compared: the largest set of one host and runtime, the first of equals."""
    sets: dict[tuple[str, ...], list[Shown]] = defaultdict(list)
    for one in group:
        facts = one.card.facts
        if number(facts.get("latency_ratio")) is not None and set(TIMING) <= facts.keys():
            sets[tuple(str(facts[key]) for key in TIMING)].append(one)
    return max((sets[key] for key in sorted(sets)), key=len, default=[])


def _point(one: Shown, x: float, mark: str, quality: Quality) -> svg.Point:
    y = float(one.card.facts[quality.mean])
    label = f"{mark} {one.name}: {quantity(one.bytes, 'bytes')}, {quantity(y, quality.unit)}"
    return svg.Point(x=x, y=y, mark=mark, label=label, tone="zoo", key=one.name, href=_address(one.name))


def _summary(one: Shown, up: str = "") -> dict[str, Any]:
    """What a card of the front page and the head of an entry's page show."""
    quality, facts = quality_of(one.card.facts), one.card.facts
    preview = None
    if one.preview:
        file, width, height = one.preview
        preview = {"address": f"{up}zoo/{quote(f'{one.name}/{file}')}", "width": width, "height": height}
    return {
        "name": one.name,
        "address": f"{up}{_address(one.name)}",
        "component": one.card.component,
        "formats": one.formats,
        "licence": one.card.licence,
        "preview": preview,
        "bytes": one.bytes,
        "quality": None if quality is None else number(facts[quality.mean]),
        "ratio": number(facts.get("latency_ratio")),
        "figures": list(_figures(one, quality)),
        "downloads": [_file(one, name, up) for name in sorted(one.artifacts, key=lambda f: (one.is_setting(f), f))],
        "text": " ".join((one.name, one.card.component, *one.formats, one.card.licence)).lower(),
    }


def _figures(one: Shown, quality: Quality | None) -> Iterable[tuple[str, str, str]]:
    """Label, figure, and what it is compared with."""
    facts = one.card.facts
    if quality is not None:
        teacher = number(facts.get(f"{quality.mean}_of_teacher"))
        sub = "" if teacher is None else f"uncompressed {quantity(teacher, quality.unit)}"
        yield quality.short, quantity(number(facts[quality.mean]), quality.unit), sub
    yield "Size", quantity(one.bytes, "bytes"), _size_of_what(one)
    seconds = number(facts.get("seconds_per_picture"))
    if seconds is not None:
        yield "Seconds a picture", written(seconds, 3), str(facts.get("seconds_host", ""))
    ratio = number(facts.get("latency_ratio"))
    if ratio is not None:
        yield "Latency ratio", written(ratio, 3), ""
    for key, unit in (("parameters", "parameters"), ("macs", "MACs")):
        value = number(facts.get(key))
        if value is not None:
            yield unit[0].upper() + unit[1:], quantity(value, unit).removesuffix(f" {unit}"), ""


def _size_of_what(one: Shown) -> str:
    if one.card.is_bundle:
        return "the three parts together"
    return f"one of {len(one.formats)} formats" if len(one.formats) > 1 else ""


def _limits(sample: CardSample) -> str:
    """How far a sample run again may be from what is kept."""
    words = (
        ("at most {:.4g} apart", sample.max_difference),
        ("PSNR at least {:.4g} dB", sample.min_psnr_db),
        ("SQNR at least {:.4g} dB", sample.min_sqnr_db),
    )
    return ", ".join(text.format(value) for text, value in words if value is not None)


def _file(one: Shown, name: str, up: str) -> dict[str, str]:
    file = one.files[name]
    return {
        "name": name,
        "leaf": name.rpartition("/")[2],
        "address": f"{up}zoo/{quote(f'{one.name}/{name}')}",
        "size": quantity(file.bytes, "bytes"),
        "bytes": exact(file.bytes),
        "sha256": file.sha256,
    }


def _address(name: str) -> str:
    return f"entries/{quote(name)}/index.html"


def _fact(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return exact(value) if float(value).is_integer() else written(value)


def _verdict(one: Shown, verdict: Mapping[str, Any]) -> rows.VerdictRow:
    """A verdict of a card as the report's tables take it.

    Raises:
        UserError: it holds something else than a verdict does.
    """
    texts = {key: str(verdict.get(key) or "") for key in ("subject", "metric", "statistic", "against", "kind", "unit")}
    try:
        return rows.VerdictRow(
            **texts,
            value=number(verdict.get("value")),
            limit=float(verdict["limit"]),
            passed=verdict["passed"] is True,
            net=None if verdict.get("net") is None else str(verdict["net"]),
            of=str(verdict.get("of", "candidate")),
            reason=str(verdict.get("reason", "")),
            exact=verdict.get("exact") is True,
            low=number(verdict.get("low")),
            high=number(verdict.get("high")),
            undecided=verdict.get("undecided") is True,
            elsewhere=verdict.get("elsewhere") is True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{one.name}/card.json: a verdict cannot be read ({error}); add the entry again") from error


def _script() -> str:
    return resources.files("compress").joinpath("templates/gallery.js").read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    import jinja2
    import markupsafe

    templates = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("compress", "templates"), jinja2.PackageLoader("eval.report", "templates")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["printable"] = svg.printable
    templates.filters["drawn"] = markupsafe.Markup  # SVG text, escaped by eval.report.svg; and the script
    return templates.get_template(template).render(**values)
