"""How many milliseconds a block takes on this host: the network with and without it, in turns.

Source: the latency look-up of SnapFusion (Li et al. 2023, arXiv:2306.00980), section 3.2.
Differs: measured on the host at hand, as the difference of two medians, the two networks in turns and in alternating
order, so that a drift of the clock reaches both. A host's figure is that host's, and changes from run to run.
Cost: 2 * (`ROUNDS` + 1) passes over one input for each block.
"""

import statistics
import time
from collections.abc import Callable

ROUNDS = 7


def saved_ms(
    whole: Callable[[], object], rest: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median milliseconds of `whole` minus those of `rest`; one untimed call of each comes first."""
    whole(), rest()
    taken: dict[int, list[float]] = {0: [], 1: []}
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            started = clock()
            (whole, rest)[which]()
            taken[which].append(1000 * (clock() - started))
    return statistics.median(taken[0]) - statistics.median(taken[1])
