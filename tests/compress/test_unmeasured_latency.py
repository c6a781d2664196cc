"""A format that an interpreter runs here is never timed: its latency gate is a row that says so, and who judged it."""

from types import SimpleNamespace

import pytest

from compress import export_stage, registry
from compress.reporting import verdict_row
from eval.gates import GateSpec
from eval.report.tables import gate_lines

INTERPRETED = SimpleNamespace(MEASURES_LATENCY=False, RUNTIME="an interpreter")
NATIVE = SimpleNamespace(RUNTIME="a runtime")


@pytest.fixture
def plan(monkeypatch):
    formats = {"export.slow": INTERPRETED, "export.quick": NATIVE}
    monkeypatch.setattr(registry, "load", formats.__getitem__)
    gates = (GateSpec(metric="latency", against="reference", max_ratio=0.5), GateSpec(metric="size", max=1000.0))
    monkeypatch.setattr(export_stage.evaluation, "specs", lambda given: given)

    def made(*names):
        exports = tuple(SimpleNamespace(format=name) for name in names)
        return SimpleNamespace(recipe=SimpleNamespace(gates=gates, export=exports))

    return made


def test_beside_a_timed_format_the_row_names_it(plan):
    (row,) = export_stage.unmeasured(plan("slow", "quick"), INTERPRETED, "slow")
    assert row.passed
    assert (row.subject, row.metric, row.value, row.limit) == ("slow", "latency", None, 0.5)
    assert "not measured: an interpreter runs the file here" in row.reason
    assert "judged on quick" in row.reason
    (line,) = gate_lines([verdict_row(row)])  # a pass without a value, which a report refuses of anything else
    assert (line.state, line.value.text) == ("judged elsewhere", "not measured")


def test_alone_it_fails(plan):
    (row,) = export_stage.unmeasured(plan("slow"), INTERPRETED, "slow")
    assert not row.passed
    assert row.reason.startswith("failed: not measured")


def test_a_format_with_its_own_runtime_is_timed(plan):
    assert export_stage.unmeasured(plan("quick"), NATIVE, "quick") == ()
    assert export_stage.measures_latency(NATIVE)
    assert not export_stage.measures_latency(registry.load("export.slow"))
