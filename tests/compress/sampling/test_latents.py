import json

import numpy as np
import pytest
import torch

from compress.errors import UserError
from compress.sampling import latents
from compress.sampling.latents import LatentScale, noise, require_finite

SCALE = LatentScale(mean=(1.0, -2.0), std=(0.5, 4.0))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_normalised_latents_have_mean_0_and_variance_1(kind):
    rng = np.random.default_rng(0)
    found = rng.standard_normal((64, 2, 16, 16)) * [[[0.5]], [[4.0]]] + [[[1.0]], [[-2.0]]]
    found = torch.from_numpy(found) if kind == "torch" else found
    seen = SCALE.normalised(found)
    for channel in range(2):
        assert float(seen[:, channel].mean()) == pytest.approx(0, abs=0.02)
        assert float(seen[:, channel].std()) == pytest.approx(1, abs=0.02)
    back = SCALE.restored(seen)
    assert type(back) is type(found)
    np.testing.assert_allclose(np.asarray(back), np.asarray(found), atol=1e-5)


def test_other_channel_counts_are_refused():
    with pytest.raises(UserError, match="latents of 4 channels, but the scale of latents.json has 2"):
        SCALE.restored(np.zeros((1, 4, 2, 2)))


@pytest.mark.parametrize(
    ("mean", "std"), [((), ()), ((1.0,), (1.0, 2.0)), ((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((float("nan"),), (1.0,))]
)
def test_scales_that_are_none(mean, std):
    with pytest.raises(ValueError, match="mean|deviation"):
        LatentScale(mean=mean, std=std)


def test_file_round_trip(tmp_path):
    latents.save(SCALE, tmp_path / "latents.json")
    assert latents.load(tmp_path / "latents.json") == SCALE


@pytest.mark.parametrize(
    "data", [[], {"mean": [1.0]}, {"mean": 1.0, "std": 2.0}, {"mean": [1], "std": [0]}, {"mean": ["x"], "std": [1]}]
)
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "latents.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="latents.json"):
        latents.load(tmp_path / "latents.json")


def test_a_seed_gives_the_same_noise_in_any_batch():
    together = noise((2, 4, 4), [5, 6, 7])
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together[1:2], noise((2, 4, 4), [6]))
    assert not np.array_equal(together[0], together[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_broken_latents_are_named(make, value):
    found = make((3, 2, 2, 2))
    assert require_finite(found, "step 3") is found
    found[1, 1, 0, 0] = value
    with pytest.raises(UserError, match="step 3: the latents of picture 1 are not finite"):
        require_finite(found, "step 3")
