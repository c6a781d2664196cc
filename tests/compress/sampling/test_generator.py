from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("tokenizers", reason="prompts go through Hugging Face's tokenizers")
import tiny

from compress.components._unet_config import BlockConfig, Grammar, StageConfig, TransformerConfig, UNetConfig
from compress.components.text_encoder import TextEncoder, TextEncoderConfig, TextLayerConfig
from compress.components.unet import UNet
from compress.errors import UserError
from compress.sampling import latents, schedule, tokenizer
from compress.sampling.generator import Networks, Settings, Way, generate, read_settings
from compress.sampling.latents import LatentScale
from compress.sampling.modules import from_modules
from compress.sampling.schedule import Schedule, signal_shares

WORDS = tokenizer.train(["red heart", "blue heart"], vocabulary=300, length=6)
SCALE = LatentScale(mean=(1.0, -1.0), std=(2.0, 0.5))
SETTINGS = Settings(tokenizer=WORDS, schedule=Schedule(), scale=SCALE)
SHARES = signal_shares(Schedule())
RED, BLUE, NOTHING = (tuple(row) for row in WORDS.encode(["red heart", "blue heart", ""]).ids.tolist())
AIMS = {RED: 1.0, BLUE: -0.5, NOTHING: 0.25}


def towards_its_text(sample, times, states):
    """What a perfect network for pictures of one value says; the states hold the value."""
    share = SHARES[times.astype(int)][:, None, None, None]
    signal, rest = np.sqrt(share), np.sqrt(1 - share)
    clean = np.broadcast_to(states[:, 0, 0][:, None, None, None], sample.shape)
    return (signal * (sample - signal * clean) / rest - rest * clean).astype(np.float32)


NETWORKS = Networks(
    text_encoder=lambda ids: np.array([[[AIMS[tuple(row)]]] for row in ids.tolist()], dtype=np.float32),
    unet=towards_its_text,
    decoder=lambda z: z.repeat(8, axis=2).repeat(8, axis=3)[:, [0, 1, 1]],
    latent_shape=(2, 4, 4),
)


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver"])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_each_prompt_reaches_its_picture(solver, most):
    made = generate(
        ["red heart", "blue heart"], replace(NETWORKS, most=most), SETTINGS, Way(solver=solver, steps=5, guidance=1.0)
    )
    for picture, value in enumerate((1.0, -0.5)):
        np.testing.assert_allclose(made.latents[picture, 0], 1.0 + 2.0 * value, atol=1e-5)
        np.testing.assert_allclose(made.latents[picture, 1], -1.0 + 0.5 * value, atol=1e-5)
    assert made.images.shape == (2, 3, 32, 32)
    assert made.notes == ()


def test_guidance_goes_beyond_the_text():
    made = generate(["red heart"], NETWORKS, SETTINGS, Way(steps=1, guidance=2.0))
    np.testing.assert_allclose(made.latents[0, 0], 1.0 + 2.0 * (2 * 1.0 - 0.25), atol=1e-5)


def test_a_picture_depends_on_its_seed_alone_not_on_the_batch():
    wild = replace(NETWORKS, unet=lambda sample, times, states: np.tanh(sample) + states[:, :, :, None])
    together = generate(["red heart"] * 3, wild, SETTINGS, Way(seed=4, steps=3)).images
    np.testing.assert_array_equal(together[1:2], generate(["red heart"], wild, SETTINGS, Way(seed=5, steps=3)).images)
    assert not np.array_equal(together[0], together[1])


def test_without_guidance_there_is_no_second_call():
    seen = []

    def unet(sample, times, states):
        seen.append(len(sample))
        return towards_its_text(sample, times, states)

    for guidance, calls in ((1.0, [1, 1]), (3.0, [2, 2])):
        seen.clear()
        generate(["red heart"], replace(NETWORKS, unet=unet), SETTINGS, Way(steps=2, guidance=guidance))
        assert seen == calls


def test_what_was_left_out_or_empty_is_said():
    def encoder(ids):
        return np.zeros((len(ids), 1, 1), np.float32)

    prompts = ["red heart", " ", "a very long story of a heart"]
    made = generate(prompts, replace(NETWORKS, text_encoder=encoder), SETTINGS, Way())
    assert made.notes[0] == "prompt 2 is empty: a picture of nothing in particular"
    assert made.notes[1].startswith("prompt 3 is longer than 4 tokens; left out: '")
    assert len(made.notes) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": -1.0}, "guidance -1"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"rescale": 2.0}, "rescale 2"),
        ({"seed": -1}, "seed -1"),
        ({"steps": 0}, "0 steps asked"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(UserError, match=message):
        generate(["red heart"], NETWORKS, SETTINGS, replace(Way(), **change))


def test_an_unknown_solver_is_named():
    way = Way()
    object.__setattr__(way, "solver", "euler")  # past the check of types that only the tests have
    with pytest.raises(UserError, match="no solver 'euler'; known: ddim, dpm_solver"):
        generate(["red heart"], NETWORKS, SETTINGS, way)


def test_no_prompt_and_other_latents_are_named():
    with pytest.raises(UserError, match="no prompt"):
        generate([], NETWORKS, SETTINGS, Way())
    with pytest.raises(UserError, match=r"the UNet has 4 latent channels, latents.json 2"):
        generate(["red heart"], replace(NETWORKS, latent_shape=(4, 4, 4)), SETTINGS, Way())


@pytest.mark.parametrize("where", ["unet", "decoder"])
def test_no_black_picture_is_passed_off(where):
    right = getattr(NETWORKS, where)
    broken = replace(NETWORKS, **{where: lambda *arrays: right(*arrays) * np.float32("nan")})
    with pytest.raises(UserError, match="UNet, time step 999" if where == "unet" else "decoder"):
        generate(["red heart"], broken, SETTINGS, Way(steps=2))


def test_settings_come_from_three_files(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer.json does not exist"):
        read_settings(tmp_path)
    WORDS.save(tmp_path / "tokenizer.json")
    schedule.save(SETTINGS.schedule, tmp_path / "scheduler.json")
    latents.save(SCALE, tmp_path / "latents.json")
    again = read_settings(tmp_path)
    assert (again.schedule, again.scale, again.tokenizer.length) == (SETTINGS.schedule, SCALE, 6)


LAYER = TransformerConfig(self_heads=1, cross_heads=1, feed_forward=8)
STAGE = StageConfig(
    width=8, head_dim=8, separable=False, resample=False, blocks=(BlockConfig(hidden=8, transformer=(LAYER,)),)
)
UNET = UNetConfig(
    in_channels=8,
    out_channels=8,
    context_width=8,
    time_width=8,
    norm_groups=4,
    grammar=Grammar(
        time="scale_shift", gate="swish", attention="softmax", shared_kv="self", projection="linear", depth_multiplier=2
    ),
    down=(STAGE,),
    mid=None,
    up=(replace(STAGE, blocks=STAGE.blocks * 2),),
)
TEXT = TextEncoderConfig(
    vocabulary=300,
    positions=6,
    width=8,
    head_dim=8,
    activation="quick_gelu",
    layers=(TextLayerConfig(heads=1, feed_forward=8),),
)
EIGHT = replace(SETTINGS, scale=LatentScale(mean=(0.0,) * 8, std=(1.0,) * 8))


def test_torch_modules_are_called_as_they_are():
    torch.manual_seed(0)
    text, unet, decoder = TextEncoder(TEXT).eval(), UNet(UNET).eval(), tiny.decoder().module
    networks = from_modules(text, unet, decoder, EIGHT, pixels=32)
    made = generate(["red heart"], networks, EIGHT, Way(solver="ddim", steps=1, guidance=2.0))
    with torch.no_grad():
        noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8, 4, 4), dtype=np.float32))
        found = [unet(noise, torch.tensor([999.0]), text(torch.tensor([row]))) for row in (RED, NOTHING)]
        clean = -(found[1] + 2.0 * (found[0] - found[1]))  # pure noise: the prediction is minus the clean latents
        expected = decoder(clean)
    np.testing.assert_allclose(made.latents, clean, atol=1e-5)
    np.testing.assert_allclose(made.images, expected, atol=1e-5)
    coarse = from_modules(text, unet, decoder, EIGHT, pixels=32, bfloat16=True)
    rough = generate(["red heart"], coarse, EIGHT, Way(solver="ddim", steps=1, guidance=2.0)).latents
    assert 0 < np.abs(rough - made.latents).max() < 0.1


def test_parts_of_different_models_are_all_named():
    text = TextEncoder(replace(TEXT, positions=7, width=16, vocabulary=200))
    with pytest.raises(UserError) as caught:
        from_modules(text, UNet(UNET), tiny.decoder().module, SETTINGS, pixels=32)
    for part in (
        "6, positions of the text encoder 7",
        "16, context width of the UNet 8",
        "json 2, channels of the UNet 8",
    ):
        assert part in str(caught.value)
    assert "entries, the text encoder 200" in str(caught.value)
