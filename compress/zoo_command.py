"""`mdcompress zoo`: one short function per command."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from compress.errors import UserError
from compress.given import NOTHING, Given

if TYPE_CHECKING:
    from compress.zoo_promote import Promotion

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]
LISTED = {"psnr_mean": "PSNR, dB", "sqnr_mean": "SQNR, dB", "latency_ratio": "latency ratio"}  # facts in a zoo's table
DRAWN = {"psnr_to_reference_mean": "PSNR drawn, dB", "seconds_per_picture": "s a picture"}  # and those of bundles
Replace = Annotated[bool, Parameter(negative="")]


def zoo_add(run_folder: Path, *, zoo: Path, replace: Replace = False) -> int:
    """Add the passed variant of a run to a zoo.

    Parameters
    ----------
    run_folder
        The folder given to `run --out`.
    zoo
        The zoo's folder; made if it does not exist.
    replace
        Replace an entry of the same name and other contents.
    """
    from compress import drawing
    from compress import zoo as zoos
    from compress.zoo_entry import entry_from_run

    place = zoos.add(zoo, entry_from_run(run_folder), replace=replace)
    drawing.console().print(str(place), highlight=False, markup=False, soft_wrap=True)
    return 0


def zoo_list(zoo: Path, *, as_json: Json = False) -> int:
    """List a zoo's entries.

    Parameters
    ----------
    zoo
        The zoo's folder.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing
    from compress import zoo as zoos

    entries = zoos.list_entries(zoo)
    if as_json:
        drawing.print_json([asdict(e) for e in entries])
        return 0
    shown = dict(LISTED) | (dict(DRAWN) if any(DRAWN.keys() & e.summary.keys() for e in entries) else {})
    rows = [(e.name, e.component, drawing.size(e.bytes), *(e.summary.get(k, "") for k in shown)) for e in entries]
    columns = ("entry", "component", "size", *shown.values())
    drawing.console().print(drawing.table(columns, rows, numeric=columns[2:]))
    return 0


def zoo_show(zoo: Path, name: str, *, as_json: Json = False) -> int:
    """Show one entry: its model card, or everything the index has of it.

    Parameters
    ----------
    zoo
        The zoo's folder.
    name
        The entry, e.g. decoder/d4_c50_kd_w8a8.
    as_json
        Print the index's record instead of the card.
    """
    from compress import drawing
    from compress import zoo as zoos

    card = zoos.show(zoo, name)
    if as_json:
        drawing.print_json(card)
    else:
        page = (zoo / name / "README.md").read_text(encoding="utf-8")
        drawing.console().print(page, highlight=False, markup=False, soft_wrap=True)
    return 0


def zoo_diff(before: Path, after: Path, *, as_json: Json = False) -> int:
    """Show what differs between two entries: files, measured facts, verdicts, recipe. Nothing is run.

    Parameters
    ----------
    before
        An entry's folder, e.g. zoo/decoder/w8a8.
    after
        Another one, of this zoo or of another.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing, zoo_diff

    found = zoo_diff.difference(before, after)
    if as_json:
        drawing.print_json(asdict(found))
        return 0
    console = drawing.console()
    rows = [(c.of, c.what, _cell(c.before), _cell(c.after), _change(c.before, c.after)) for c in found.changes]
    if rows:
        columns = ("of", "", "before", "after", "change")
        console.print(drawing.table(columns, rows, numeric=("change",)))
    if found.recipe:
        console.print(found.recipe, highlight=False, markup=False, soft_wrap=True)
    if not rows and not found.recipe:
        console.print("the same", highlight=False)
    return 0


def zoo_verify(zoo: Path, name: str | None = None, *, as_json: Json = False) -> int:
    """Check every digest of a zoo, and run every sample again in each runtime that is installed.

    Ends with 0 (all as listed), 1 (something is not), or 3 (all that could be checked is, but a runtime is missing).

    Parameters
    ----------
    zoo
        The zoo's folder.
    name
        One entry only.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing, generation, registry, zoo_verify

    checks = zoo_verify.verify(
        zoo, name, runner=lambda form: registry.load(f"export.{form}").load, drawer=generation.drawer
    )
    if as_json:
        drawing.print_json([asdict(c) for c in checks])
    else:
        console = drawing.console()
        for c in checks:
            state = "ok" if c.ok else "absent" if c.missing else "FAILED"
            text = f"{state:<6} {c.entry} {c.file}{'' if c.ok else ': ' + c.problem}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        console.print(f"{sum(c.ok for c in checks)} of {len(checks)} checks passed", highlight=False)
    bad = [c for c in checks if not c.ok]
    return (3 if all(c.missing for c in bad) else 1) if bad else 0


def zoo_pull(
    source: str,
    *names: str,
    zoo: Path,
    replace: Replace = False,
    index_sha256: str | None = None,
    as_json: Json = False,
) -> int:
    """Bring entries of another zoo: resumed where it broke off, every digest checked before anything is replaced.

    Parameters
    ----------
    source
        A zoo's folder, or its address, http:// or https://.
    names
        Entries, e.g. decoder/w8a8; all of them where none is named.
    zoo
        The zoo that they go into; made if it does not exist.
    replace
        Replace entries of the same name and other contents.
    index_sha256
        Refuse a source whose index.json has another SHA-256.
    as_json
        Print JSON, for scripts.
    """
    from compress import drawing, zoo_pull

    with drawing.Drawer(drawing.console(stderr=True)) as drawer:
        brought = zoo_pull.pull(source, names, zoo, emit=drawer, replace=replace, index_sha256=index_sha256)
    if as_json:
        drawing.print_json([asdict(one) for one in brought])
        return 0
    new = sum(one.new for one in brought)
    text = f"{new} brought, {len(brought) - new} there already; run their samples with: mdcompress zoo verify {zoo}"
    drawing.console().print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def zoo_promote(
    candidate: Path,
    *,
    zoo: Path,
    gates: str | None = None,
    given: Given = NOTHING,
    reference: str | None = None,
    as_json: Json = False,
) -> int:
    """Put a variant into the place of the entry of its name, past regression gates against that entry, which is kept.

    The old entry goes to archive/<name>/<number> of the same zoo; promoting that folder undoes it.

    Parameters
    ----------
    candidate
        An entry's folder, of any zoo, or a run that passed.
    zoo
        The zoo to promote it in.
    gates
        A gates file; by default the candidate's own recipe, with regression gates for every metric it names.
    given
        Photographs, a checkpoint or code of your own in the place of the recipe's.
    reference
        Of a bundle: the float model to compare with, where its recipe's is not a preset.
    as_json
        Print the verdicts as JSON.
    """
    from compress import bundle_promote, drawing, zoo_promote
    from compress.gates_file import read_demands

    if bundle_promote.is_bundle(candidate):
        with drawing.Drawer(drawing.console(stderr=True)) as drawer:
            done = bundle_promote.promote(
                candidate,
                zoo,
                gates_file=None if gates is None else Path(gates),
                reference=reference,
                given=given,
                tell=drawer,
            )
        return _promoted(done, zoo, as_json=as_json)
    if reference is not None:
        raise UserError("--reference is for bundles; a component's is given with --checkpoint")
    if gates is None:
        recipe = zoo_promote.with_regression(read_demands(str(candidate / "recipe.yaml")).recipe)
    else:
        recipe = read_demands(gates, baseline_given=True).recipe
    with drawing.Drawer(drawing.console(stderr=True)) as drawer:
        done = zoo_promote.promote(candidate, zoo, recipe=recipe, given=given, emit=drawer)
    return _promoted(done, zoo, as_json=as_json)


def _promoted(done: "Promotion", zoo: Path, *, as_json: bool) -> int:
    """Show what was judged and what became of it."""
    from compress import drawing
    from eval import gates as records

    if as_json:
        drawing.print_json([records.to_json(verdict) for verdict in done.verdicts])
    else:
        console = drawing.console()
        drawing.print_verdicts(console, done.verdicts)
        kept = f"; the old one is in {done.archived}" if done.archived else ""
        text = f"{done.name} is in {done.place}{kept}" if done.passed else f"{done.name} of {zoo} is as it was"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0 if done.passed else 1


def _cell(value: float | str | None) -> str:
    if value is None:
        return "none"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _change(before: float | str | None, after: float | str | None) -> str:
    """Of two numbers, how much larger the second is."""
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before:
        return ""
    return f"{(after - before) / abs(before):+.1%}"


def zoo_gallery(zoo: Path, *, out: Path, title: str = "Model zoo") -> int:
    """Write a zoo as a static site: cards, pictures, trade-off plots, the files to download.

    Parameters
    ----------
    zoo
        The zoo's folder.
    out
        The site's folder; a site that was made before is replaced.
    title
        What the site is called.
    """
    from compress import drawing
    from compress.zoo_gallery import gallery

    page = gallery(zoo, out, title=title)
    drawing.console().print(str(page), highlight=False, markup=False, soft_wrap=True)
    return 0
