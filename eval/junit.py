"""Verdicts as JUnit XML, which GitHub actions, GitLab and Jenkins draw as tests.

One suite per subject, one case per gate. A gate that failed is a failure; one that could not be judged (nothing
measured, not comparable) is an error. No clock and no host: the same verdicts give the same bytes.
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET  # written here, never parsed

from eval.gates import Verdict

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(verdicts: Sequence[Verdict], *, name: str) -> str:
    """The XML of all verdicts.

    Args:
        verdicts: In the order in which they are to be shown.
        name: What was judged; the first part of every case's class name.
    """
    root = ET.Element("testsuites", _counts(verdicts, name))
    for subject in dict.fromkeys(verdict.subject for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.subject == subject]
        suite = ET.SubElement(root, "testsuite", _counts(own, f"{name}: {subject}"))
        used: dict[str, int] = {}
        for verdict in own:
            title = words(verdict)
            used[title] = used.get(title, 0) + 1
            title += f" ({used[title]})" if used[title] > 1 else ""
            _case(suite, verdict, title, _clean(f"{name}.{subject}"))
    ET.indent(root, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def words(verdict: Verdict) -> str:
    """A gate as one line: "psnr mean max_drop 0.5 dB against reference"."""
    net = f" ({verdict.net})" if verdict.net else ""
    owner = "reference's " if verdict.of == "reference" else ""
    unit = f" {verdict.unit}" if verdict.unit else ""
    limit = f"{verdict.kind} {verdict.limit:g}{unit}"
    return f"{owner}{verdict.metric}{net} {verdict.statistic} {limit} against {verdict.against}"


def unjudged(verdict: Verdict) -> bool:
    """Whether a gate failed because there was nothing to judge."""
    return not verdict.passed and verdict.value is None and not verdict.exact


def _counts(verdicts: Sequence[Verdict], name: str) -> dict[str, str]:
    errors = sum(unjudged(verdict) for verdict in verdicts)
    failures = sum(not verdict.passed for verdict in verdicts) - errors
    return {
        "name": _clean(name),
        "tests": str(len(verdicts)),
        "failures": str(failures),
        "errors": str(errors),
        "skipped": "0",
        "time": "0",
    }


def _case(suite: ET.Element, verdict: Verdict, title: str, class_name: str) -> None:
    case = ET.SubElement(suite, "testcase", {"name": _clean(title), "classname": class_name, "time": "0"})
    if not verdict.passed:
        kind = "error" if unjudged(verdict) else "failure"
        reason = _clean(verdict.reason)
        found = ET.SubElement(case, kind, {"message": reason, "type": _clean(verdict.metric)})
        found.text = _clean(f"{reason}\n{_trace(verdict)}")
    ET.SubElement(case, "system-out").text = _clean(f"{verdict.reason}\n{_trace(verdict)}")


def _trace(verdict: Verdict) -> str:
    """What the number is of, for whoever compares it with another."""
    lines = [f"metric: {verdict.definition}"] if verdict.definition else []
    lines += [f"net: {verdict.net}, weights {verdict.net_digest}"] if verdict.net_digest else []
    return "\n".join(lines)


def _clean(text: str) -> str:
    """Without the characters that no XML may hold."""
    return NOT_XML.sub("?", text)
