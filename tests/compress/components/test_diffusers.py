"""Folders that diffusers and transformers saved, read by us: same weights, same outputs, and back again."""

import importlib.util
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compress.components import load_variant, parts_of
from compress.conversion import convert

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers, a test oracle"),
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers, a test oracle"),
    pytest.mark.filterwarnings("ignore"),
]
UNET: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "sample_size": 8,
}
UNETS = {
    "SD-1": UNET,
    "SD-2": UNET | {"attention_head_dim": (2, 4, 4), "use_linear_projection": True},
    "BK-SDM-Small": UNET | {"layers_per_block": 1, "mid_block_type": None},
    "like MobileDiffusion": UNET
    | {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 3),
        "layers_per_block": (1, 1, 2),
        "mid_block_type": None,
        "resnet_time_scale_shift": "scale_shift",
        "in_channels": 8,
        "out_channels": 8,
    },
    "uneven": UNET
    | {
        "transformer_layers_per_block": ((1, 2), (2, 1), 1),
        "reverse_transformer_layers_per_block": (1, (1, 2, 1), (3, 1, 1)),
        "time_embedding_dim": 20,
        "block_out_channels": (8, 12, 24),
    },
    "SDXL": UNET
    | {
        "transformer_layers_per_block": (1, 2, 1),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 10,
    },
}
KL: dict[str, Any] = {
    "block_out_channels": (8, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
}
KLS = {
    "SD": KL,
    "no attention": KL | {"mid_block_add_attention": False, "use_quant_conv": False, "use_post_quant_conv": False},
    "shifted": KL | {"scaling_factor": 0.36, "shift_factor": 0.12, "latent_channels": 8, "layers_per_block": 1},
}
TINIES = {
    "TAESD": {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4},
    "slim decoder": {
        "encoder_block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (4,) * 4,
        "num_decoder_blocks": (1, 2, 1, 3),
        "latent_channels": 16,
    },
}
CLIP = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
CLIPS = {"quick_gelu": CLIP, "gelu": CLIP | {"hidden_act": "gelu", "max_position_embeddings": 20}}


@dataclass(frozen=True)
class Case:
    """A model of theirs and the folder that it saved itself into."""

    kind: str
    theirs: Any
    folder: Any


def made(kind, options):
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    if kind == "clip":
        model = CLIPTextModel(CLIPTextConfig(bos_token_id=0, eos_token_id=1, **options))
    else:
        model = {"kl": AutoencoderKL, "tiny": AutoencoderTiny, "unet": UNet2DConditionModel}[kind](**options)
    with torch.no_grad():  # norms that are not the identity, so that each must find its place
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.eval()


CASES = [(k, n, o) for k, x in (("kl", KLS), ("tiny", TINIES), ("unet", UNETS), ("clip", CLIPS)) for n, o in x.items()]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def case(request, tmp_path_factory):
    kind, _, options = request.param
    model, folder = made(kind, options), tmp_path_factory.mktemp(kind) / "model"
    model.save_pretrained(folder)
    return Case(kind, model, folder)


def outputs(kind, model):
    """What their model makes of seeded inputs, with the inputs."""
    torch.manual_seed(1)
    if kind == "clip":
        ids = torch.randint(0, 60, (2, 11))
        return [((ids,), model(ids).last_hidden_state)]
    if kind == "unet":
        size = model.config.in_channels
        given = [torch.randn(2, size, 8, 12), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 12)]
        added = [torch.randn(2, 10), 512 * torch.rand(2, 6)] if model.config.addition_embed_type else []
        extra = dict(zip(("text_embeds", "time_ids"), added, strict=False))
        return [((*given, *added), model(*given, added_cond_kwargs=extra).sample)]
    latents, images, config = torch.randn(2, model.config.latent_channels, 6, 4), torch.rand(2, 3, 32, 48), model.config
    if kind == "tiny":
        decoded, encoded = model.decode(latents).sample, model.encode(2 * images - 1).latents
    else:
        shift = config.shift_factor or 0.0
        decoded = model.decode(latents / config.scaling_factor + shift).sample
        encoded = (model.encode(2 * images - 1).latent_dist.mean - shift) * config.scaling_factor
    return [((latents,), (decoded / 2 + 0.5).clamp(0, 1)), ((images,), encoded)]


@torch.no_grad()
def test_outputs_are_theirs(case):
    for path, (given, expected) in zip(parts_of(case.folder), outputs(case.kind, case.theirs), strict=True):
        assert expected.std() > 0.01
        torch.testing.assert_close(load_variant(path).module(*given), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_encoders_moments_are_theirs(tmp_path):
    model = made("kl", KL)
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 48)
    mean, log_variance = load_variant(tmp_path / "encoder").module.moments(images)
    expected = model.encode(2 * images - 1).latent_dist
    torch.testing.assert_close(mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_variance, expected.logvar, rtol=0, atol=1e-5)


def tensors(folder):
    (file,) = folder.glob("*.safetensors")
    return {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}


def matters(model):
    """Their configuration, but for where it came from and what nothing is built from."""
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else dict(model.config)
    told = ("sample_size", "bos_token_id", "eos_token_id", "pad_token_id", "projection_dim", "time_embedding_dim")
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k not in (*told, "transformers_version")}
    for key in ("attention_head_dim", "layers_per_block", "transformer_layers_per_block"):  # a number is a list of it
        if isinstance(kept.get(key), int):
            kept[key] = [kept[key]] * len(kept.get("block_out_channels") or [1])
    kept["layers_per_block"] = list(kept.get("layers_per_block") or [])
    return json.loads(json.dumps(kept))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_back_again_is_bit_identical(case, dtype, tmp_path):
    """Straight back, and by way of our own folder; and their library reads what came back."""
    source, wanted = tmp_path / "source", getattr(torch, dtype)
    library = "transformers" if case.kind == "clip" else "diffusers"
    case.theirs.to(wanted).save_pretrained(source)
    case.theirs.float()
    convert(source, tmp_path / "straight", layout=library)
    convert(source, tmp_path / "ours", layout="mdcompress")
    halves = (
        [tmp_path / "ours" / p.name for p in parts_of(source)] if case.kind in ("kl", "tiny") else [tmp_path / "ours"]
    )
    convert(halves[0], tmp_path / "back", layout=library, companion=next(iter(halves[1:]), None), dtype=dtype)
    before = tensors(source)
    original = type(case.theirs).from_pretrained(source)
    for folder in (tmp_path / "straight", tmp_path / "back"):
        after = tensors(folder)
        assert after.keys() == before.keys()
        assert all(after[n].dtype == wanted and torch.equal(after[n], before[n]) for n in before)
        again = type(case.theirs).from_pretrained(folder)
        assert matters(again) == matters(original)
        assert all(torch.equal(x, y) for x, y in zip(again.parameters(), original.parameters(), strict=True))
    if case.kind != "clip":
        written, given = (json.loads((f / "config.json").read_text()) for f in (tmp_path / "straight", source))
        assert written == given


def test_their_shards_and_variants(tmp_path):
    model = made("unet", UNET)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    model.half().save_pretrained(tmp_path / "variant", variant="fp16")
    model.save_pretrained(tmp_path / "both", variant="fp16", max_shard_size="40KB")
    assert all(len(list((tmp_path / name).iterdir())) > 3 for name in ("shards", "both"))
    whole = load_variant(tmp_path / "whole").module.state_dict()
    for name in ("shards", "variant", "both"):
        for key, tensor in load_variant(tmp_path / name).module.state_dict().items():
            assert torch.equal(tensor, whole[key] if name == "shards" else whole[key].half().float())


@pytest.mark.parametrize("kind", ["unet", "clip"])
def test_the_command_that_a_pickle_is_refused_with_converts_it(kind, tmp_path):
    from compress.errors import UserError

    model = made(kind, UNET if kind == "unet" else CLIP)
    folder = tmp_path / "it's old"
    model.save_pretrained(folder)
    (weights,) = folder.glob("*.safetensors")
    name = {"unet": "diffusion_pytorch_model.bin", "clip": "pytorch_model.bin"}[kind]
    prefix = "" if kind == "unet" else "text_model."
    torch.save({prefix + key: tensor for key, tensor in load_file(weights).items()}, folder / name)
    weights.unlink()
    with pytest.raises(UserError, match="convert it with") as caught:
        load_variant(folder)
    run(str(caught.value).splitlines()[-1])
    converted = tmp_path / "it's old-safetensors"
    expected = {n.removeprefix("text_model."): t for n, t in model.state_dict().items()}
    ours = load_variant(converted).module.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in expected.items() if n in ours) and len(ours) > 10


def run(line):
    import shlex
    import subprocess
    import sys

    words = shlex.split(line)
    assert words[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, timeout=300)
