"""The integer programme against every choice there is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.quantize._assignment import cheapest_options

pytest.importorskip("scipy", reason="extra mixed is not installed")

option = st.tuples(st.integers(0, 10**6).map(lambda n: n * 1e-9), st.integers(1, 10**7).map(float))
rows = st.lists(st.lists(option, min_size=1, max_size=3), min_size=1, max_size=5)


def best(costs, prices, budget):
    """The least cost of all choices whose prices fit."""
    every = itertools.product(*(range(len(row)) for row in costs))
    sums = [
        (sum(c[i] for c, i in zip(costs, o, strict=True)), sum(p[i] for p, i in zip(prices, o, strict=True)))
        for o in every
    ]
    return min((cost for cost, price in sums if price <= budget), default=None)


@given(table=rows, share=st.floats(0, 1.1))
def test_no_choice_that_fits_costs_less(table, share):
    costs, prices = [[c for c, _ in row] for row in table], [[p for _, p in row] for row in table]
    budget = share * sum(max(row) for row in prices)
    found, least = cheapest_options(costs, prices, budget, purpose="the test"), best(costs, prices, budget)
    if found is None:
        assert least is None
    else:
        assert sum(row[i] for row, i in zip(prices, found, strict=True)) <= budget * (1 + 1e-9)
        assert sum(row[i] for row, i in zip(costs, found, strict=True)) == pytest.approx(least, rel=1e-6, abs=1e-13)


@given(table=rows, choice=st.data())
def test_a_budget_that_one_choice_meets_to_the_last_byte(table, choice):
    costs, prices = [[c for c, _ in row] for row in table], [[p for _, p in row] for row in table]
    budget = sum(row[choice.draw(st.integers(0, len(row) - 1))] for row in prices)
    found = cheapest_options(costs, prices, budget, purpose="the test")
    assert sum(row[i] for row, i in zip(costs, found, strict=True)) == pytest.approx(
        best(costs, prices, budget), rel=1e-6, abs=1e-13
    )


def test_damages_of_very_different_size_still_count():
    """A choice worth a billionth of the largest damage is not lost in the solver's tolerance."""
    costs = [[1.0, 0.0], [3e-9, 1e-9], [2e-9, 1e-9]]
    prices = [[1.0, 2.0]] * 3
    assert cheapest_options(costs, prices, 5.0, purpose="the test") == (1, 1, 0)


def test_nothing_to_choose_and_shapes_that_differ():
    assert cheapest_options([], [], 1.0, purpose="the test") == ()
    for costs, prices in ([[1.0]], [[1.0, 2.0]]), ([[]], [[]]):
        with pytest.raises(ValueError, match="the same options"):
            cheapest_options(costs, prices, 1.0, purpose="the test")
