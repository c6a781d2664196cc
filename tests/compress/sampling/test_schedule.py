import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import UserError
from compress.sampling import schedule
from compress.sampling.schedule import Schedule, clean_and_noise, signal_shares, timesteps

KINDS = ["scaled_linear", "linear", "squaredcos_cap_v2"]


def theirs(record):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the oracle of the schedules")
    return diffusers.DDIMScheduler(**schedule.to_json(record), timestep_spacing="trailing", clip_sample=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zero", [False, True])
def test_shares_are_those_of_diffusers(kind, zero):
    record = Schedule(beta_schedule=kind, rescale_betas_zero_snr=zero)
    np.testing.assert_allclose(signal_shares(record), theirs(record).alphas_cumprod.double(), atol=2e-6)


def test_shares_are_the_running_product():
    record = Schedule(num_train_timesteps=7, rescale_betas_zero_snr=False)
    share, expected = 1.0, []
    for k in range(7):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * k / 6
        share *= 1 - root * root
        expected.append(share)
    np.testing.assert_allclose(signal_shares(record), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_fall_from_almost_one_to_zero(kind):
    shares = signal_shares(Schedule(beta_schedule=kind))
    assert shares[0] > 0.99
    assert shares[-1] == 0.0
    assert (np.diff(shares) < 0).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 50, 999, 1000])
def test_steps_are_those_of_diffusers(count):
    record = Schedule()
    their_scheduler = theirs(record)
    their_scheduler.set_timesteps(count)
    assert timesteps(record, count).tolist() == their_scheduler.timesteps.tolist()


@pytest.mark.parametrize("count", [0, -1, 1001])
def test_impossible_counts_are_refused(count):
    with pytest.raises(UserError, match="takes 1 to 1000"):
        timesteps(Schedule(), count)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 0.99), st.sampled_from(["v_prediction", "epsilon"]))
def test_clean_and_noise_are_recovered(clean, noise, share, kind):
    signal, rest = share**0.5, (1 - share) ** 0.5
    prediction = signal * noise - rest * clean if kind == "v_prediction" else noise
    found = clean_and_noise(np.float64(signal * clean + rest * noise), np.float64(prediction), share, kind)
    np.testing.assert_allclose(found, (clean, noise), atol=1e-9)


def test_noise_alone_says_nothing_of_the_picture():
    with pytest.raises(ValueError, match="use v_prediction"):
        Schedule(prediction_type="epsilon")


@pytest.mark.parametrize(
    "change", [{"num_train_timesteps": 1}, {"beta_start": 0.0}, {"beta_start": 0.02}, {"beta_end": 1.0}]
)
def test_values_that_make_no_schedule(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Schedule(**change)


def test_file_round_trip(tmp_path):
    record = Schedule(beta_schedule="linear", rescale_betas_zero_snr=False, prediction_type="epsilon")
    schedule.save(record, tmp_path / "scheduler.json")
    assert schedule.load(tmp_path / "scheduler.json") == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps_offset": 1}, "steps_offset"),
        ({"beta_end": 2.0}, "0 < start < end < 1"),
        ({"beta_end": "much"}, "beta_end"),
        ({"beta_end": float("inf")}, "beta_end"),
        ({"prediction_type": "epsilon"}, "use v_prediction"),
        ({"prediction_type": "sample"}, "prediction_type"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
    ],
)
def test_a_setting_that_does_not_belong_is_named(tmp_path, change, message):
    (tmp_path / "scheduler.json").write_text(json.dumps(schedule.to_json(Schedule()) | change))
    with pytest.raises(UserError, match=message):
        schedule.load(tmp_path / "scheduler.json")


def test_a_missing_key_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        schedule.load(tmp_path / "scheduler.json")
    data = schedule.to_json(Schedule())
    del data["prediction_type"]
    (tmp_path / "scheduler.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="prediction_type"):
        schedule.load(tmp_path / "scheduler.json")
