"""The verdicts on a variant: its stages' promises, and the recipe's gates on what was measured."""

from collections.abc import Sequence

from compress import evaluation
from compress.evaluation import Measured
from compress.plan import Plan
from compress.records import Achieved, Variant
from eval import gates


def achieved(variant: Variant) -> tuple[gates.Verdict, ...]:
    """Requested against achieved, of every stage: a gate of its own."""
    return tuple(
        gates.Verdict(
            subject="variant",
            metric="achieved",
            net=None,
            statistic=f"{stage.method}: {item.what}",
            of="candidate",
            against="requested",
            kind="min",
            value=float(item.achieved),
            limit=float(item.requested),
            passed=item.met,
            unit=item.unit,
            reason=_sentence(item),
        )
        for stage in variant.lineage
        for item in stage.achieved
    )


def of_variant(plan: Plan, measured: Measured) -> tuple[gates.Verdict, ...]:
    """The recipe's gates on the torch variant; latency is judged on what ships, so here only if nothing is exported."""
    specs = evaluation.specs(plan.recipe.gates)
    if plan.recipe.export:
        specs = tuple(spec for spec in specs if spec.metric != "latency")
    teacher, final = measured.stages[0], measured.final
    return gates.judge(
        specs,
        final.measurements,
        subject="variant",
        latency=final.latency,
        sizes=gates.Sizes(candidate_bytes=final.cost.weight_bytes, reference_bytes=teacher.cost.weight_bytes),
    )


def tally(found: Sequence[gates.Verdict]) -> str:
    """How many passed."""
    return f"{sum(v.passed for v in found)} of {len(found)} gates passed"


def _sentence(item: Achieved) -> str:
    text = f"{item.what}: {_plain(item.achieved)} of {_plain(item.requested)} {item.unit} asked for"
    return text if item.met else f"failed: {text}; see the modules that were skipped"


def _plain(value: float) -> str:
    """A count in full with its thousands apart; anything else to four figures."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"
