"""Noise is drawn as the paper says, the discriminator begins as the UNet, a toy is learnt in one step."""

import pytest
import tiny
import torch
import toys

from compress.distill import _diffusion, diffusion_gan

SHORT = {"steps": 3, "batch": 2, "pixels": 32, "precision": "float32"}
WALK = _diffusion.walk(tiny.diffusion().schedule)


def stage(folder, **options):
    folder.mkdir(exist_ok=True)
    given = {"diffusion": tiny.diffusion(), "inputs": tiny.unet_inputs()} | options
    return tiny.stage_input(folder, tiny.unet(), teacher=tiny.unet().module, **given)


@pytest.mark.parametrize(("nearer", "here"), [(0, 1), (100, 350), (700, 999)])
def test_the_posterior_is_that_of_bayes(nearer, here):
    """q(x_s | x_0) times q(x_t | x_s) as a function of x_s: precisions add, means weigh by them."""
    s, t = (WALK.shares[level].double() for level in (nearer, here))
    clean, sample = torch.full((1, 1, 1, 1), 0.8), torch.full((1, 1, 1, 1), -1.3)
    kept = t / s
    precisions = 1 / (1 - s), kept / (1 - kept)
    centres = s.sqrt() * 0.8, -1.3 / kept.sqrt() if kept else torch.tensor(0.0)
    variance = 1 / sum(precisions)
    mean = variance * sum(p * c for p, c in zip(precisions, centres, strict=True))
    found = diffusion_gan.posterior(WALK, clean, sample, torch.tensor([nearer]), torch.tensor([here]))
    assert float(found[0]) == pytest.approx(float(mean), rel=1e-3)
    assert float(found[1]) == pytest.approx(float(variance), rel=1e-3)


def test_real_and_noisier_latents_have_the_moments_of_the_schedule(tmp_path):
    clean = torch.full((4000, 1, 2, 2), 2.0)
    draws = _diffusion.Draws(stage(tmp_path), diffusion_gan.Config(**SHORT), 0)
    here, nearer, real, sample = diffusion_gan.drawn(WALK, clean, draws, 4)
    assert torch.equal(nearer, (here - 250).clamp_min(0)) and here.min() >= 1 and here.max() <= 999
    for levels, made in ((nearer, real), (here, sample)):
        share = WALK.share(levels)
        left = (made - share.sqrt() * 2.0) / (1 - share).sqrt()
        assert float(left.mean()) == pytest.approx(0.0, abs=0.03) and float(left.std()) == pytest.approx(1.0, abs=0.03)
    noise = (real - WALK.share(nearer).sqrt() * 2.0).flatten()
    later = (sample - WALK.share(here).sqrt() * 2.0).flatten()
    assert float(torch.corrcoef(torch.stack([noise, later]))[0, 1]) > 0.1  # x_t is drawn from this x_s


def test_forward_sampling_forgets_the_noisier_latents_and_the_posterior_does_not(tmp_path):
    made, here, nearer = torch.zeros(2000, 1, 1, 1), torch.full((2000,), 300), torch.full((2000,), 280)
    sample = torch.randn(2000, 1, 1, 1, generator=torch.Generator().manual_seed(77))
    found = {}
    for how in ("forward", "posterior"):
        draws = _diffusion.Draws(stage(tmp_path), diffusion_gan.Config(**SHORT), 0)
        new = diffusion_gan.renoised(WALK, made, sample, nearer, here, draws, how)
        found[how] = float(torch.corrcoef(torch.stack([new.flatten(), sample.flatten()]))[0, 1])
    assert abs(found["forward"]) < 0.1 and found["posterior"] > 0.5


def test_the_discriminator_begins_as_the_unet():
    unet = tiny.unet().module
    judge = diffusion_gan.Judge(unet, 8, seed=3)
    inputs = tiny.unet_inputs(2, 4)
    with torch.no_grad():
        assert torch.equal(judge.unet(*inputs), unet(*inputs)) and judge(*inputs).shape == (2, 1, 4, 4)
    assert all(p.requires_grad for p in judge.parameters()) and not any(p.requires_grad for p in unet.parameters())


def test_an_exact_student_is_not_moved_by_the_reconstruction():
    clean, levels = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 500, 999])
    assert float(diffusion_gan.reconstruction(WALK, clean, clean, levels)) == 0.0
    noise_share = 1 - WALK.shares[levels]
    expected = float((1 / noise_share).mean())  # an error of 1 everywhere
    assert float(diffusion_gan.reconstruction(WALK, clean + 1, clean, levels)) == pytest.approx(expected, rel=1e-4)


class Killed(Exception):
    pass


@pytest.mark.parametrize("sampling", ["forward", "posterior"])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, sampling):
    config = diffusion_gan.Config(**SHORT | {"checkpoint_every": 2, "sampling": sampling})
    whole = diffusion_gan.apply(stage(tmp_path / "whole"), config).module.state_dict()

    def progress(done, total, text):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        diffusion_gan.apply(stage(tmp_path / "killed", progress=progress), config)
    again = diffusion_gan.apply(stage(tmp_path / "killed"), config).module.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_a_toy_is_learnt_in_one_step(tmp_path, monkeypatch):
    """It may leave one of the two numbers out, as adversarial training does; the mean of both it must leave."""
    given = toys.stage(tmp_path, monkeypatch)
    assert toys.from_a_mode(toys.sampled(given.teacher, 1)) > 0.8
    config = diffusion_gan.Config(
        steps=250, batch=64, lr=3e-3, jumps=1, reconstruction=0.02, pixels=32, precision="float32"
    )
    assert toys.from_a_mode(toys.sampled(diffusion_gan.apply(given, config).module, 1)) < 0.4
