"""K-means of numbers on a line, weighted: the best table of k values for a tensor.

Source: the exact dynamic programme of Ckmeans.1d.dp (Wang and Song 2011, The R Journal 3/2), then Lloyd's iterations.
Differs: the programme runs on at most `BINS` bins of neighbouring values, so that a tensor of any size takes a moment;
it is exact where there are no more distinct values than bins, and Lloyd's iterations refine the rest on all values.
They start from a uniform grid as well and the better result is kept: a palette is never worse than that grid.
Cost: one sort, then k * BINS^2 steps of the programme and a few k * log(n) of Lloyd's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

BINS = 512
ITERATIONS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Sorted values, and the sums of their weights, weighted values and weighted squares before each."""

    values: Float[Tensor, " n"]
    ones: Float[Tensor, " n_plus_1"]
    firsts: Float[Tensor, " n_plus_1"]
    squares: Float[Tensor, " n_plus_1"]


def best_table(
    values: Float[Tensor, " n"], count: int, *, weights: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " k"]:
    """`count` values, sorted, float32, with (almost) the least weighted squared distance to `values`.

    With fewer distinct values than entries the last entry is repeated.
    """
    ordered, order = values.double().sort()
    own = torch.ones_like(ordered) if weights is None else weights.double()[order]
    if float(own.sum()) <= 0:
        own = torch.ones_like(ordered)
    sums = _Sums(
        values=ordered, ones=_before(own), firsts=_before(own * ordered), squares=_before(own * ordered.square())
    )
    starts = [_programme(sums, _edges(ordered), count), _uniform(ordered, count)]
    refined = [_lloyd(sums, start) for start in starts]
    best = min(refined, key=lambda table: _error(sums, table))
    table = best.float().unique()
    return torch.cat([table, table[-1:].expand(count - len(table))])


def nearest(values: Float[Tensor, "..."], table: Float[Tensor, " k"]) -> Tensor:
    """The index of the entry that each value is nearest to; of two equally near, the lower."""
    return torch.bucketize(values, (table[1:].double() + table[:-1].double()).div(2).to(values.dtype))


def _before(terms: Tensor) -> Tensor:
    return torch.cat([terms.new_zeros(1), terms.cumsum(0)])


def _edges(ordered: Tensor) -> Tensor:
    """Positions at which bins start and end: every distinct value, or half of equal counts and half of equal widths."""
    changes = torch.cat([torch.ones(1, dtype=torch.bool), ordered[1:] > ordered[:-1]]).nonzero()[:, 0]
    if len(changes) > BINS:
        counts = torch.linspace(0, len(changes) - 1, BINS // 2).long()
        grid = torch.linspace(float(ordered[0]), float(ordered[-1]), BINS // 2, dtype=torch.float64)
        widths = torch.searchsorted(ordered[changes], grid).clamp(max=len(changes) - 1)
        changes = changes[torch.cat([counts, widths]).unique()]
    return torch.cat([changes, torch.tensor([len(ordered)])])


def _programme(sums: _Sums, edges: Tensor, count: int) -> Tensor:
    """The best table whose clusters end at bin edges; row j of the recursion has j + 1 clusters."""
    ones, firsts, squares = (part[edges] for part in (sums.ones, sums.firsts, sums.squares))
    mass = ones[None, :] - ones[:, None]
    first = firsts[None, :] - firsts[:, None]
    cost = (squares[None, :] - squares[:, None] - first.square() / mass.clamp_min(1e-300)).clamp_min(0.0)
    cost = cost.masked_fill(torch.ones_like(cost, dtype=torch.bool).tril(), torch.inf)  # cost[i, j]: bins i to j - 1
    cost.fill_diagonal_(0.0)
    least, cuts = cost[0], []
    for _ in range(count - 1):
        least, cut = (least[:, None] + cost).min(dim=0)
        cuts.append(cut)
    end, ends = len(edges) - 1, [len(edges) - 1]
    for cut in reversed(cuts):
        end = int(cut[end])
        ends.append(end)
    ends.append(0)
    bounds = edges[torch.tensor(ends[::-1])].unique()
    return _means(sums, bounds, sums.values[bounds[:-1]])


def _uniform(ordered: Tensor, count: int) -> Tensor:
    """The symmetric grid of rounding to nearest, through 0."""
    half = max(count // 2 - 1, 1)
    step = float(ordered.abs().max()) / half
    return step * torch.arange(-half, min(half, count - half - 1) + 1, dtype=torch.float64)


def _lloyd(sums: _Sums, table: Tensor) -> Tensor:
    """Entries to the means of what is nearest to them, until nothing moves."""
    for _ in range(ITERATIONS):
        moved = _means(sums, _bounds(sums, table), table).sort().values
        if torch.equal(moved, table):
            break
        table = moved
    return table


def _bounds(sums: _Sums, table: Tensor) -> Tensor:
    inner = torch.searchsorted(sums.values, (table[1:] + table[:-1]) / 2, right=False)
    return torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(sums.values))])


def _means(sums: _Sums, bounds: Tensor, otherwise: Tensor) -> Tensor:
    mass = sums.ones[bounds].diff()
    return torch.where(mass > 0, sums.firsts[bounds].diff() / mass.clamp_min(1e-300), otherwise)


def _error(sums: _Sums, table: Tensor) -> float:
    bounds = _bounds(sums, table)
    mass, first, square = (part[bounds].diff() for part in (sums.ones, sums.firsts, sums.squares))
    return float((square - 2 * table * first + table.square() * mass).sum())
