"""A UNet's triples: over the whole schedule, from the family's own parts, the same every time, and what is missing is said."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from compress.components import build
from compress.errors import UserError
from compress.feeds import Source, noisy_latents
from compress.records import Arch
from compress.sampling import latents as scales
from compress.sampling import schedule
from compress.sampling.latents import LatentScale
from compress.written import Data, Drawn, Pictures

TEXT = Arch(kind="text_encoder.text_encoder", config=replace(tiny.TEXT, width=12))


def load(name: str) -> torch.nn.Module:
    modules = {"encoder": tiny.encoder().module, "text_encoder": tiny._seeded(build(TEXT), 0)}
    return modules[name]


def source(pictures: Path, home: Path, companions: tuple[str, ...] = (), seed: int = 0, count: int = 8) -> Source:
    wanted = Pictures(source=str(pictures), count=count, size=64)
    return Source(
        arch=tiny.unet().arch,
        folder=home / "unet",
        companions={name: home / name for name in companions},
        data=Data(calibration=wanted, evaluation=replace_count(wanted, 6)),
        seed=seed,
    )


def replace_count(wanted: Pictures, count: int) -> Pictures:
    return wanted.model_copy(update={"count": count})


@pytest.mark.parametrize(("count", "steps"), [(1, 1000), (8, 1000), (7, 10), (30, 10)])
def test_every_equal_part_of_the_schedule_has_its_time_step(count: int, steps: int) -> None:
    found = np.sort(noisy_latents.stratified(count, steps, np.random.default_rng(0)))
    edges = np.arange(count + 1) * steps / count
    assert ((found >= np.floor(edges[:-1])) & (found < np.ceil(edges[1:]))).all()


def test_a_unet_for_few_steps_is_evaluated_at_those_alone(pictures: Path, tmp_path: Path) -> None:
    whole = source(pictures, tmp_path)
    drawn = Drawn(count=4, solver="ddim", steps=3, guidance=1.0, evaluated_at="steps")
    few = replace(whole, data=whole.data.model_copy(update={"drawn": drawn}))
    steps = set(schedule.timesteps(schedule.Schedule(), 3).tolist())
    made, before = noisy_latents.feed(few, load), noisy_latents.feed(whole, load)
    assert set(made.evaluation().inputs[1].tolist()) == steps
    assert len(set(before.evaluation().inputs[1].tolist())) == 6
    assert torch.equal(made.calibration()[1], before.calibration()[1])
    changed = {
        name for name, digest in noisy_latents.digests(few).items() if digest != noisy_latents.digests(whole)[name]
    }
    assert changed == {"evaluation"}  # so that no stage is done anew


def test_without_guidance_no_caption_is_empty(pictures: Path, tmp_path: Path) -> None:
    schedule.save(schedule.Schedule(), tmp_path / "scheduler.json")
    scales.save(LatentScale(mean=(0.5,) * 8, std=(2.0,) * 8), tmp_path / "latents.json")
    whole = source(pictures, tmp_path, ("encoder", "text_encoder"))

    empty = load("text_encoder")(_empty(tmp_path))[0]
    for guidance, guided in ((3.0, True), (1.0, False)):
        drawn = Drawn(count=4, solver="ddim", steps=1, guidance=guidance, evaluated_at="steps")
        few = replace(whole, data=whole.data.model_copy(update={"drawn": drawn}))
        assert torch.equal(noisy_latents.feed(few, load).evaluation().inputs[2][3], empty) == guided


def test_alone_it_is_noise_and_says_so(pictures: Path, tmp_path: Path) -> None:
    given = source(pictures, tmp_path)
    feed = noisy_latents.feed(given, load)
    latents, times, context = feed.calibration()
    assert (latents.shape, times.shape, context.shape) == ((8, 8, 8, 8), (8,), (8, 77, 12))
    assert latents.std() == pytest.approx(1.0, abs=0.05)
    assert [text.split(":")[0] for text in feed.notes] == [
        "no encoder lies beside the UNet",
        "no text encoder lies beside the UNet",
        "no noise schedule lies beside the UNet",
    ]


def test_with_its_family_latents_are_noised_and_captions_read(pictures: Path, tmp_path: Path) -> None:
    noises = schedule.Schedule()
    schedule.save(noises, tmp_path / "scheduler.json")
    scales.save(LatentScale(mean=(0.5,) * 8, std=(2.0,) * 8), tmp_path / "latents.json")
    feed = noisy_latents.feed(source(pictures, tmp_path, ("encoder", "text_encoder")), load)
    samples = feed.evaluation()
    latents, times, context = samples.inputs
    assert context.shape == (6, 9, 12)
    assert [name.split()[0] for name in samples.names] == [f"t={int(t)}" for t in times]
    assert torch.equal(context[3], load("text_encoder")(_empty(tmp_path))[0])
    shares = torch.from_numpy(schedule.signal_shares(noises)).float()[times.long()].view(-1, 1, 1, 1)
    clean = _clean(pictures)
    noise = (latents - shares.sqrt() * clean) / (1 - shares).sqrt()
    assert noise[shares.flatten() < 0.9].std() == pytest.approx(1.0, abs=0.06)
    assert len(feed.notes) == 1 and "tokenizer" in feed.notes[0]


def _empty(home: Path) -> torch.Tensor:
    from compress.feeds import _tokens

    return _tokens.ids(home / "text_encoder", TEXT.config, [""])


def _clean(pictures: Path) -> torch.Tensor:
    from calibration import images

    shown = images.load(str(pictures), split="evaluation", count=6, size=64).images
    with torch.no_grad():
        return (load("encoder")(shown) - 0.5) / 2.0


def test_the_same_seed_gives_the_same_and_sides_differ(pictures: Path, tmp_path: Path) -> None:
    one, same, other = (noisy_latents.feed(source(pictures, tmp_path, seed=seed), load) for seed in (0, 0, 1))
    for first, second in zip(one.sample(3, 2, 64), same.sample(3, 2, 64), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(one.sample(3, 2, 64)[0], one.sample(4, 2, 64)[0])
    assert not torch.equal(one.calibration()[0], other.calibration()[0])
    assert not torch.equal(one.calibration()[0][:6], one.evaluation().inputs[0])


def test_the_digest_knows_the_schedule(pictures: Path, tmp_path: Path) -> None:
    before = noisy_latents.digests(source(pictures, tmp_path))
    schedule.save(schedule.Schedule(beta_end=0.02), tmp_path / "scheduler.json")
    after = noisy_latents.digests(source(pictures, tmp_path))
    assert all(before[name] != after[name] for name in ("calibration", "evaluation", "sampler"))
    assert noisy_latents.digests(source(pictures, tmp_path, seed=1))["evaluation"] != after["evaluation"]


def test_a_companion_that_does_not_fit_is_refused() -> None:
    wide = replace(TEXT, config=replace(TEXT.config, width=16))
    with pytest.raises(UserError, match="16 channels, not 12"):
        noisy_latents.check(tiny.unet().arch, {"encoder": tiny.encoder().arch, "text_encoder": wide})


def test_it_makes_its_own_latents_of_captions(pictures: Path, tmp_path: Path) -> None:
    given = source(pictures, tmp_path, ("text_encoder",))
    wanted = Pictures(source="captions", count=2, size=64)
    given = replace(given, data=Data(calibration=wanted, evaluation=wanted))
    calls: list[float] = []

    def still(latents: torch.Tensor, times: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        calls.extend(times.tolist())
        return torch.zeros_like(latents)  # no noise in it: clean latents are the first noise, made larger

    class Still(torch.nn.Module):
        forward = staticmethod(still)

    modules = {"": Still(), "text_encoder": load("text_encoder")}
    feed = noisy_latents.feed(given, modules.__getitem__)
    latents, _, _ = feed.calibration()
    assert len(calls) == 10 * 2 * 2 and calls[0] == 999.0
    assert latents.shape == (2, 8, 8, 8) and latents.isfinite().all()
    assert not any("no encoder" in note for note in feed.notes)
    assert feed.sample(0, 3, 64)[0].shape == (3, 8, 8, 8)


def test_captions_need_a_text_encoder(pictures: Path, tmp_path: Path) -> None:
    wanted = Pictures(source="captions", count=2, size=64)
    alone = replace(source(pictures, tmp_path), data=Data(calibration=wanted, evaluation=wanted))
    with pytest.raises(UserError, match="text encoder of its family"):
        noisy_latents.digests(alone)
