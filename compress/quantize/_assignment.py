"""One option for each row under a budget: the multiple-choice knapsack, solved exactly.

Source: bits per layer by integer programme as in HAWQ-V3 (Yao et al. 2021, arXiv:2011.10680), section 3.4; the solver
is HiGHS (Huangfu and Hall 2018), through scipy.
Differs: the prices are added up again, and the problem is solved once more under a tighter budget where the solver's
tolerance let it pass.
Cost: milliseconds for some hundred rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compress.errors import require

TOLERANCE = 1e-9  # of the budget, for sums of floats
TRIES = 5


def cheapest_options(
    costs: Sequence[Sequence[float]], prices: Sequence[Sequence[float]], budget: float, *, purpose: str
) -> tuple[int, ...] | None:
    """The option of each row with the least sum of costs whose prices add up to at most `budget`.

    Args:
        costs: What is to be small: one finite number for each option of each row; rows may differ in length.
        prices: What must fit, at least 0; shaped as `costs`.
        budget: What the prices may add up to.
        purpose: Who needs scipy, for the message where it is missing.

    Returns:
        An index for each row; None where not even the cheapest options fit.

    Raises:
        MissingExtra: scipy is not installed.
        ValueError: the two differ in shape, or a row is empty.
    """
    if [len(row) for row in costs] != [len(row) for row in prices] or not all(costs):
        raise ValueError("costs and prices must have the same options, at least one in each row")
    if not costs:
        return ()
    least = sum(min(row) for row in prices)
    if not _fits(least, budget):
        return None
    optimize: Any = require("scipy.optimize", extra="mixed", purpose=purpose)
    allowed = 1.0
    for _ in range(TRIES):
        chosen = _solved(optimize, costs, prices, budget, allowed)
        if chosen is None:
            break
        if _fits(sum(row[option] for row, option in zip(prices, chosen, strict=True)), budget):
            return chosen
        allowed -= 1e-6
    return tuple(int(np.argmin(row)) for row in prices)  # a budget within the solver's tolerance of the least possible


def _fits(total: float, budget: float) -> bool:
    return total <= budget + TOLERANCE * abs(budget)


def _solved(
    optimize: Any, costs: Sequence[Sequence[float]], prices: Sequence[Sequence[float]], budget: float, allowed: float
) -> tuple[int, ...] | None:
    """Costs count from each row's least, in millionths of the largest: HiGHS stops within 1e-6 of the best sum."""
    rows = np.repeat(np.arange(len(costs)), [len(row) for row in costs])
    above = np.concatenate([np.asarray(row, dtype=float) - min(row) for row in costs])
    price = np.concatenate([np.asarray(row, dtype=float) for row in prices])
    one_each = (rows[None, :] == np.arange(len(costs))[:, None]).astype(float)
    found = optimize.milp(
        above * (1e6 / max(float(above.max()), 1e-300)),
        integrality=np.ones(len(above)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(price[None, :] / budget if budget > 0 else price[None, :], -np.inf, allowed),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return tuple(int(found.x[rows == row].argmax()) for row in range(len(costs)))
