import importlib.util
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import gates, junit, summary
from eval.compare import Measurement
from eval.gates import GateSpec

SCHEMA = Path(__file__).with_name("junit.xsd")
XS = "{http://www.w3.org/2001/XMLSchema}"
TYPES = {"xs:string": r"(?s).*", "xs:nonNegativeInteger": r"\d+", "xs:decimal": r"-?\d+(\.\d+)?"}


def schema_problems(element, declared):
    """What of one element and all below it the schema does not allow; of schemas no richer than ours."""
    kind = declared[element.tag].find(f"{XS}complexType")
    attributes = {a.get("name"): a for a in kind.findall(f"{XS}attribute")}
    for name, value in element.attrib.items():
        if name not in attributes:
            yield f"{element.tag} has {name}"
        elif not re.fullmatch(TYPES[attributes[name].get("type")], value):
            yield f"{element.tag} {name}={value!r}"
    for name, attribute in attributes.items():
        if attribute.get("use") == "required" and name not in element.attrib:
            yield f"{element.tag} without {name}"
    if (element.text or "").strip() and kind.get("mixed") != "true":
        yield f"{element.tag} holds text"
    left = list(element)
    for particle in kind.findall(f"{XS}sequence/{XS}element"):
        count = 0
        while left and left[0].tag == particle.get("ref"):
            yield from schema_problems(left.pop(0), declared)
            count += 1
        most = particle.get("maxOccurs", "1")
        if count < int(particle.get("minOccurs", "1")) or (most != "unbounded" and count > int(most)):
            yield f"{element.tag} has {count} {particle.get('ref')}"
    if left:
        yield f"{element.tag} has {left[0].tag} there"


def check(text):
    declared = {element.get("name"): element for element in ET.parse(SCHEMA).getroot().findall(f"{XS}element")}
    root = ET.fromstring(text)
    problems = list(schema_problems(root, declared))
    if importlib.util.find_spec("lxml") is not None:
        from lxml import etree

        schema = etree.XMLSchema(etree.parse(str(SCHEMA)))
        assert schema.validate(etree.fromstring(text.encode())) == (problems == [])
    return problems


def measurement(values, of="candidate"):
    return Measurement(
        metric="psnr",
        net=None,
        unit="dB",
        higher_is_better=True,
        of=of,
        against="ground_truth",
        values=tuple(values),
        problems=(None,) * len(values),
        definition="a | definition",
    )


@pytest.fixture(scope="module")
def verdicts():
    specs = [GateSpec(metric="psnr", max_drop=0.5), GateSpec(metric="psnr", statistic="worst", max_drop=0.5)]
    specs += [GateSpec(metric="ssim", max_drop=0.1), GateSpec(metric="psnr", max_drop=0.5)]
    measured = [measurement([29.9, 28.0]), measurement([30.0, 30.0], of="reference")]
    return gates.judge(specs, measured, subject="onnx") + gates.judge(specs[:1], [], subject="variant")


def test_the_schema_check_can_fail():
    good = '<testsuites><testsuite name="a" tests="1"><testcase name="b" classname="c"/></testsuite></testsuites>'
    assert check(good) == []
    for bad in (
        good.replace('tests="1"', 'tests="one"'),
        good.replace('tests="1"', ""),
        good.replace(' classname="c"', ""),
        good.replace("<testcase", '<testcase colour="red"'),
        good.replace("</testsuite>", "<failure/></testsuite>"),
        good.replace("</testsuites>", "words</testsuites>").replace("<testsuites>", "<testsuites>words"),
    ):
        assert check(bad) != [], bad


def test_every_gate_is_a_case_and_counts_add_up(verdicts):
    text = junit.to_junit(verdicts, name="gates of decoder")
    assert check(text) == []
    assert text == junit.to_junit(verdicts, name="gates of decoder")
    root = ET.fromstring(text)
    cases = root.findall(".//testcase")
    assert len(cases) == len(verdicts) == int(root.get("tests"))
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == len(cases)
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert len(failed) == sum(not v.passed for v in verdicts)
    assert int(root.get("failures")) + int(root.get("errors")) == len(failed)
    unmeasured = [case.find("error").get("message") for case in cases if case.find("error") is not None]
    assert unmeasured
    assert all("not measured" in message for message in unmeasured)
    assert [suite.get("name") for suite in root] == ["gates of decoder: onnx", "gates of decoder: variant"]


@given(text=st.text())
def test_any_text_is_well_formed(text):
    verdict = gates.Verdict(
        subject="variant",
        metric="psnr",
        net=None,
        statistic="mean",
        of="candidate",
        against="reference",
        kind="max_drop",
        value=1.0,
        limit=0.5,
        passed=False,
        unit="dB",
        reason=f"failed: {text}",
    )
    assert check(junit.to_junit([verdict], name=text)) == []
    lines = summary.to_markdown([verdict], title=text).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2


def test_the_summary_says_how_it_went_first(verdicts):
    lines = summary.to_markdown(verdicts, title="decoder").splitlines()
    failed = sum(not v.passed for v in verdicts)
    assert lines[0] == f"## decoder: {failed} of {len(verdicts)} gates failed"
    assert sum(line.startswith("- **") for line in lines) == failed
    assert sum(line.startswith("| **FAILED** |") for line in lines) == failed
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    assert columns == {8}
    passed = [replace(v, passed=True, value=1.0) for v in verdicts]
    assert summary.to_markdown(passed, title="decoder").startswith(f"## decoder: all {len(verdicts)} gates passed")
    exact = replace(passed[0], value=None, exact=True)
    assert "| exact |" in summary.to_markdown([exact], title="x")
    assert math.isfinite(len(lines))
