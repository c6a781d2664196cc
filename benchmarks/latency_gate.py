"""How often the latency gate passes, fails and stays undecided, by how much slower the candidate is.

    python benchmarks/latency_gate.py                     simulated timings, seeded: the same table everywhere
    python benchmarks/latency_gate.py --real              this machine as it is, about 10 minutes
    python benchmarks/latency_gate.py --real --load 2     with two more processes that compute all the time

Real: a chain of small convolutions in torch on one thread against the same chain with more of them. The limit is
1 + MARGIN of eval.latency_outcome. Simulated: a clock that moves only when work is done; calls of 1 ms whose noise has
a drift, two regimes that come and go (another process on the same core), dependence from call to call, and spikes.
"""

import argparse
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from eval.latency_outcome import MARGIN, outcome
from eval.metrics import latency

LIMIT = 1 + MARGIN
LAYERS = (20, 40)  # the first that can be made slower by so much
SIMULATED = {  # log-normal noise, its dependence on the call before, how much the slow regime costs, spikes, drift a second
    "quiet": {"noise": 0.01, "depends": 0.3, "slow": 0.0, "spikes": 0.002, "drift": 0.0},
    "shared": {"noise": 0.06, "depends": 0.7, "slow": 0.15, "spikes": 0.01, "drift": 0.02},
    "crowded": {"noise": 0.12, "depends": 0.9, "slow": 0.4, "spikes": 0.05, "drift": 0.05},
    "wall clock, crowded": {"noise": 0.12, "depends": 0.9, "slow": 0.4, "spikes": 0.3, "drift": 0.05},
}


class Machine:
    """A clock that only work moves."""

    def __init__(self, seed, *, noise, depends, slow, spikes, drift):
        self.random, self.now, self.state, self.crowd = np.random.default_rng(seed), 0.0, 0.0, False
        self.noise, self.depends, self.slow, self.spikes, self.drift = noise, depends, slow, spikes, drift

    def clock(self):
        return self.now

    def work(self, seconds):
        def run():
            self.state = self.depends * self.state + np.sqrt(1 - self.depends**2) * self.random.standard_normal()
            if self.random.random() < seconds / 0.02:  # regimes last 20 ms on average
                self.crowd = self.random.random() < 0.5
            factor = np.exp(self.noise * self.state + self.slow * self.crowd) * (1 + self.drift * self.now)
            if self.random.random() < self.spikes:
                factor *= 1 + self.random.exponential(10)
            self.now += seconds * factor

        return run


def simulated(seed, slowdown, noise, seconds):
    machine = Machine(seed, **noise)
    return latency.paired_ratio(
        machine.work(1e-3),
        machine.work(1e-3 * (1 + slowdown)),
        sampling=sampling(seed, seconds),
        clock=machine.clock,
        threads=1,
    )


def chain(layers):
    picture, weight, bias = torch.ones(1, 4, 8, 8), torch.full((4, 4, 3, 3), 1 / 36), torch.zeros(4)

    def run():
        x = picture
        with torch.inference_mode():
            for _ in range(layers):
                x = torch.conv2d(x, weight, bias, padding=1)

    return run


def real(seed, slowdown, seconds):
    layers = next(count for count in LAYERS if abs(count * slowdown - round(count * slowdown)) < 1e-9)
    works = chain(layers), chain(round(layers * (1 + slowdown)))
    return latency.paired_ratio(*works, sampling=sampling(seed, seconds), threads=1)


def sampling(seed, seconds):
    return latency.Sampling(seconds=seconds, limits=(LIMIT,), seed=seed)


def row(name, slowdown, runs, measure):
    began = time.monotonic()
    found = [measure(seed) for seed in range(runs)]
    states = [outcome(one, LIMIT).state for one in found]
    count = {state: states.count(state) for state in ("pass", "fail", "undecided")}
    ratios = np.array([one.ratio for one in found])
    floors, busy = (float(np.median([getattr(one, key) for one in found])) for key in ("noise_floor", "busy"))
    took = (time.monotonic() - began) / runs
    print(
        f"| {name} | {slowdown:.1%} | {runs} | {count['pass']} | {count['fail']} | {count['undecided']} | "
        f"{1 - count['pass'] / runs:.1%} | {np.median(ratios):.4f} ({ratios.min():.3f} to {ratios.max():.3f}) | "
        f"{floors:.3f} | {busy:.0%} | {np.median([one.pairs for one in found]):.0f} | {took:.2f} |",
        flush=True,
    )


def burn():
    while True:
        sum(range(10_000))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--load", type=int, default=0, help="processes that compute all the time beside it")
    parser.add_argument("--seconds", type=float, default=12.0, help="budget of one gate run")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of runs")
    options = parser.parse_args()
    runs = {0.0: 200, 0.025: 10, 0.05: 100, 0.1: 20, 0.2: 20}
    print(f"{latency.host()}; load average {os.getloadavg()[0]:.1f}; limit {LIMIT:g}; {time.strftime('%Y-%m-%d')}")
    print(
        "| noise | slower by | runs | pass | fail | undecided | not passed | ratio: median (range) | noise floor | busy | pairs | s a run |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    torch.set_num_threads(1)
    beside = [multiprocessing.get_context("spawn").Process(target=burn, daemon=True) for _ in range(options.load)]
    for process in beside:
        process.start()
    try:
        for name in ["real"] if options.real else SIMULATED:
            for slowdown, count in runs.items():
                options_of = {"slowdown": slowdown, "seconds": options.seconds}
                measure = partial(real, **options_of)
                if not options.real:
                    measure = partial(simulated, noise=SIMULATED[name], **options_of)
                row(name, slowdown, max(1, round(count * options.scale)), measure)
    finally:
        for process in beside:
            process.terminate()
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
