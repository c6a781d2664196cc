"""Whether a drawn picture shows what was asked for, by pictures whose neighbours are known."""

import pytest
import torch

from eval.compare import Metric, compare_asked
from eval.gates import GateSpec, judge, problems
from eval.metrics import task_score

LEVELS = torch.linspace(0, 1, 40)
GALLERY = LEVELS[:, None, None, None].expand(40, 3, 32, 32)  # pictures of one grey each: their order is known


def greys(*levels: float) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(len(levels), 3, 64, 64)


def test_the_own_picture_is_among_the_ten_nearest_or_it_is_not() -> None:
    step = float(LEVELS[1])
    right = torch.tensor([20, 20, 20, 20])
    drawn = greys(20 * step, 24.9 * step, 25.1 * step, float("nan"))  # of the second, 5 are nearer on each side: 16..25
    assert task_score.measure(drawn, GALLERY, right).tolist() == [1, 1, 0, 0]


def test_gates_take_the_share_and_the_drop_from_the_references() -> None:
    right = torch.arange(0, 40, 4)
    exact, wrong = greys(*LEVELS[right].tolist()), greys(*LEVELS[right.flip(0)].tolist())
    half = torch.cat([exact[:5], wrong[:5]])
    found = compare_asked(GALLERY, right, {"candidate": half, "reference": exact}, [Metric(name="task_score")])
    assert [(one.of, one.against) for one in found] == [("candidate", "ground_truth"), ("reference", "ground_truth")]
    share = sum(found[0].values) / 10
    assert 0.5 <= share < 1 and found[1].values == (1.0,) * 10
    for spec, passed in (
        (GateSpec(metric="task_score", against="ground_truth", min=share), True),
        (GateSpec(metric="task_score", against="ground_truth", min=share + 0.05), False),
        (GateSpec(metric="task_score", max_drop=1 - share + 0.01), True),
        (GateSpec(metric="task_score", max_drop=1 - share - 0.05), False),
    ):
        verdict, *floor = judge([spec], found, subject="variant")
        assert (verdict.passed, [one.passed for one in floor]) == (passed, [True] if spec.max_drop else [])


def test_a_drop_from_a_model_that_draws_nothing_right_proves_nothing() -> None:
    right = torch.arange(0, 40, 4)
    wrong = greys(*[0.0] * 8, 1.0, 1.0)
    both = compare_asked(GALLERY, right.flip(0), {"candidate": wrong, "reference": wrong}, [Metric(name="task_score")])
    drop, floor = judge([GateSpec(metric="task_score", max_drop=0.1)], both, subject="variant")
    assert drop.passed and not floor.passed


def test_a_gate_says_what_it_compares_with() -> None:
    assert problems(GateSpec(metric="task_score", against="ground_truth", min=0.5)) == []
    assert problems(GateSpec(metric="task_score", max_drop=0.1)) == []
    (text,) = problems(GateSpec(metric="task_score", min=0.5))
    assert "against: ground_truth" in text


@pytest.mark.parametrize("of", ["candidate", "reference"])
def test_a_picture_that_is_not_finite_is_named(of: str) -> None:
    sound, broken = greys(0.5), greys(float("nan"))
    pair = {"candidate": sound, "reference": sound} | {of: broken}
    found = {m.of: m for m in compare_asked(GALLERY, torch.tensor([20]), pair, [Metric(name="task_score")])}
    assert found[of].values == (0.0,) and "not finite" in (found[of].problem or "")
