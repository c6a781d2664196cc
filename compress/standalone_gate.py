"""A recipe's gates on something that already exists: a variant folder, a run, or an exported file."""

from pathlib import Path

from compress import evaluation
from compress.components import load_variant
from compress.errors import UserError
from compress.export_stage import format_of, judge_file, teacher_file
from compress.nn import cost
from compress.nn.batches import outputs, take
from compress.plan import Plan
from compress.records import Variant
from compress.runs import Emit, Event
from compress.store import Store, default_root
from eval import compare, gates


def judge_path(path: Path, plan: Plan, tell: Emit) -> tuple[gates.Verdict, ...]:
    """Verdicts on whatever is at `path`, against the recipe's component on the recipe's photographs.

    Raises:
        UserError: nothing there that can be judged; says what can.
    """
    folder = path / "variant" if (path / "variant" / "arch.json").exists() else path
    if not (folder / "arch.json").exists() and not path.is_file():
        raise UserError(
            f"{path}: nothing to judge; give a variant folder (arch.json), a run directory, or an exported file"
        )
    tell(Event(kind="started", name="decoding the teacher's pictures"))
    teacher = load_variant(plan.teacher, plan.recipe.component, origins=plan.origins)
    photographs = evaluation.prepare(evaluation.feed_of(plan), teacher.module)
    metrics = evaluation.image_metrics(evaluation.specs(plan.recipe.gates))
    tell(Event(kind="started", name="measuring and timing"))
    if path.is_file():
        format_name = format_of(path)
        reference = teacher_file(plan, Store(default_root()), format_name, teacher, take(photographs.inputs, 0, 1))
        of_teacher = evaluation.measure(photographs, photographs.reference, metrics, "ground_truth")
        return judge_file(plan, path, reference, photographs, of_teacher).verdicts
    variant = load_variant(folder, origins=plan.origins)
    of_teacher = evaluation.measure(photographs, photographs.reference, metrics, "ground_truth")
    return _judge_variant(variant, teacher, plan, photographs, of_teacher)


def _judge_variant(
    variant: Variant,
    teacher: Variant,
    plan: Plan,
    photographs: evaluation.Photographs,
    of_teacher: tuple[compare.Measurement, ...],
) -> tuple[gates.Verdict, ...]:
    specs = evaluation.specs(plan.recipe.gates)
    pictures = outputs(variant.module, photographs.inputs)
    example = take(photographs.inputs, 0, 1)
    seconds = evaluation.JUDGED_LATENCY_SECONDS
    return gates.judge(
        specs,
        evaluation.complete(photographs, pictures, specs, of_teacher),
        subject="variant",
        latency=evaluation.torch_latency(teacher.module, variant.module, example, seconds),
        sizes=gates.Sizes(
            candidate_bytes=cost.measure(variant.module, example).weight_bytes,
            reference_bytes=cost.measure(teacher.module, example).weight_bytes,
        ),
    )
