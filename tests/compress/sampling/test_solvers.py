import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from compress.sampling import ddim, dpm_solver, schedule
from compress.sampling.schedule import Schedule, signal_shares, timesteps

SOLVERS = [ddim, dpm_solver]
PLAIN = Schedule(rescale_betas_zero_snr=False)


def network(sample, step):
    """Any smooth function of sample and step."""
    return torch.tanh(0.7 * sample.roll(1, dims=-1)) * math.cos(step / 300) - 0.3 * sample


def theirs(record, solver, count, noise):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of the solvers")
    settings = {**schedule.to_json(record), "timestep_spacing": "trailing"}
    if solver is ddim:
        scheduler = diffusers.DDIMScheduler(**settings, clip_sample=False)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(**settings, final_sigmas_type="zero")
    scheduler.set_timesteps(count)
    sample = noise
    for step in scheduler.timesteps:
        sample = scheduler.step(network(sample, float(step)), step, sample).prev_sample
    return sample


# Counts that divide 1000: with others diffusers' DDIM takes its steps from one place and their targets from another.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers under NumPy 2
@pytest.mark.parametrize("count", [1, 2, 4, 8, 20, 50])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__.rsplit(".")[-1])
def test_walks_as_diffusers_does(solver, kind, count):
    record = Schedule(rescale_betas_zero_snr=False, prediction_type=kind)
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        solver.solve(network, noise, record, count), theirs(record, solver, count, noise), atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_ddim_from_pure_noise_as_diffusers_does(count):
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        ddim.solve(network, noise, Schedule(), count), theirs(Schedule(), ddim, count, noise), atol=2e-4, rtol=2e-4
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_known_picture_is_reached_in_any_number_of_steps(solver):
    """The best prediction for a single picture is exact at every step, so is the walk."""
    shares, rng = signal_shares(Schedule()), np.random.default_rng(0)
    picture = rng.standard_normal((1, 2, 3, 3))

    def predict(sample, step):
        signal, rest = shares[step] ** 0.5, (1 - shares[step]) ** 0.5
        return signal * (sample - signal * picture) / rest - rest * picture

    for count in (1, 2, 5, 30):
        found = solver.solve(predict, rng.standard_normal(picture.shape), Schedule(), count)
        np.testing.assert_allclose(found, picture, atol=1e-9)


def gaussian_error(solver, record, count, deviation=0.4):
    """Against the exact flow for normal data: every sample keeps its quantile, so it is scaled by a known factor.

    The last step of both solvers goes from the last time step to the mean of what is left.
    """
    shares = signal_shares(record)

    def spread(share):
        return math.sqrt(share * deviation**2 + 1 - share)

    def predict(sample, step):
        share = shares[step]
        signal, rest = share**0.5, (1 - share) ** 0.5
        clean = signal * deviation**2 / spread(share) ** 2 * sample
        return signal * (sample - signal * clean) / rest - rest * clean

    first, last = (shares[step] for step in timesteps(record, count)[[0, -1]])
    exact = spread(last) / spread(first) * last**0.5 * deviation**2 / spread(last) ** 2
    return abs(float(solver.solve(predict, np.ones((1, 1, 1, 1)), record, count).item()) - exact)


@pytest.mark.parametrize("record", [PLAIN, Schedule()], ids=["some signal", "pure noise"])
def test_more_steps_come_nearer_to_the_exact_flow(record):
    for solver in SOLVERS:
        errors = [gaussian_error(solver, record, count) for count in (80, 160, 320)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 5e-3


def test_second_order_beats_first_order_at_equal_steps():
    for count in (10, 20, 40, 80):
        assert gaussian_error(dpm_solver, PLAIN, count) < gaussian_error(ddim, PLAIN, count) / 3


@pytest.mark.parametrize("solver", SOLVERS)
def test_torch_and_numpy_give_the_same(solver):
    noise = np.random.default_rng(3).standard_normal((2, 3, 4, 4))

    def predict(sample, step):
        return sample * 0.3 - step / 1000

    ours = solver.solve(predict, noise, Schedule(), 6)
    np.testing.assert_allclose(solver.solve(predict, torch.from_numpy(noise), Schedule(), 6).numpy(), ours, atol=1e-12)


def test_sampling_needs_no_torch():
    rooms = "ddim, dpm_solver, guidance, latents, schedule, tokenizer"
    code = f"import sys; from compress.sampling import {rooms}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
