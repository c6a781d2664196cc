"""Verdicts as Markdown, for the summary page of a CI job."""

from collections.abc import Sequence

from eval.gates import Verdict

LIMITS = {
    "min": "at least",
    "max": "at most",
    "max_drop": "drop at most",
    "max_rise": "rise at most",
    "max_ratio": "ratio at most",
    "max_gain": "gain at most",
}


def to_markdown(verdicts: Sequence[Verdict], *, title: str) -> str:
    """A heading that says how it went, the reasons of what failed, and the table of all gates."""
    failed = [verdict for verdict in verdicts if not verdict.passed]
    state = f"{len(failed)} of {len(verdicts)} gates failed" if failed else f"all {len(verdicts)} gates passed"
    lines = [f"## {_cell(title)}: {state}", ""]
    lines += [f"- **{_cell(verdict.subject)}, {_cell(verdict.metric)}**: {_cell(verdict.reason)}" for verdict in failed]
    lines += [""] if failed else []
    lines += ["| | of | gate | value | 95 % | limit | against |", "|---|---|---|---:|---|---|---|"]
    lines += [_row(verdict) for verdict in verdicts]
    nets = dict.fromkeys((v.net, v.net_digest) for v in verdicts if v.net_digest)
    lines += ["", *(f"LPIPS net `{net}`, weights SHA-256 `{digest}`." for net, digest in nets)]
    return "\n".join(lines).rstrip() + "\n"


def _row(verdict: Verdict) -> str:
    net = f" ({verdict.net})" if verdict.net else ""
    owner = "reference's " if verdict.of == "reference" else ""
    unit = f" {verdict.unit}" if verdict.unit and verdict.metric != "achieved" else ""
    value = "exact" if verdict.exact else "none" if verdict.value is None else f"{verdict.value:.4g}{unit}"
    interval = "" if verdict.low is None or verdict.high is None else f"{verdict.low:.4g} to {verdict.high:.4g}"
    cells = (
        ("passed, undecided" if verdict.undecided else "passed")
        if verdict.passed
        else ("**UNDECIDED**" if verdict.undecided else "**FAILED**"),
        verdict.subject,
        f"{owner}{verdict.metric}{net}, {verdict.statistic}",
        value,
        interval,
        f"{LIMITS.get(verdict.kind, verdict.kind)} {verdict.limit:.4g}{unit}",
        verdict.against.replace("_", " "),
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Text that stays in its cell and starts no markup of its own."""
    flat = " ".join(text.split())
    return flat.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
