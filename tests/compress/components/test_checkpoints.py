"""Folders of diffusers and transformers: however a file keeps its tensors, the component is the same."""

import json
import re
import subprocess
import sys

import folders
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import components
from compress.components import build, find, load_variant, locate, read_arch
from compress.components._checkpoints._grammar import grammars
from compress.components._tensors import header, read
from compress.errors import UserError
from compress.records import Arch

KL_FILE, CLIP_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


def same(variant, other):
    ours, theirs = variant.module.state_dict(), other.module.state_dict()
    assert variant.arch == other.arch and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == torch.float32 for name in ours)


def change(path, rename=lambda name: name, tensor=lambda name, t: t):
    tensors = load_file(path)
    save_file({rename(name): tensor(name, t).contiguous() for name, t in tensors.items()}, path)


@pytest.mark.parametrize("name", folders.CONFIGS)
def test_every_class_reads_back_what_was_written(name, tmp_path):
    config = folders.CONFIGS[name]
    folder = folders.write(config, tmp_path / "x")
    parts = components.parts_of(folder)
    for path, made in zip(parts, folders.variants(config), strict=True):
        same(load_variant(path), made)
        assert not load_variant(path).module.training
        components.check_variant(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", folders.CONFIGS)
def test_half_precision_is_read_as_float32(name, dtype, tmp_path):
    config = folders.CONFIGS[name]
    parts = components.parts_of(folders.write(config, tmp_path / "x", dtype))
    for path, made in zip(parts, folders.variants(config), strict=True):
        for key, tensor in load_variant(path).module.state_dict().items():
            assert torch.equal(tensor, made.module.state_dict()[key].to(dtype).float())


@pytest.mark.parametrize("name", folders.CONFIGS)
def test_shards_are_one_file(name, tmp_path):
    config = folders.CONFIGS[name]
    folder, stem = folders.write(config, tmp_path / "x"), grammars()[name].stem
    folders.sharded(folder, stem, load_file(folder / f"{stem}.safetensors"))
    for path, made in zip(components.parts_of(folder), folders.variants(config), strict=True):
        same(load_variant(path), made)
    assert len(locate(components.parts_of(folder)[0]).files()) == 4


@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_alone_is_read_and_the_plain_file_goes_first(shards, tmp_path):
    folder = folders.write(folders.KL, tmp_path / "x")
    tensors = load_file(folder / KL_FILE)
    half = {name: t.half() for name, t in tensors.items()}
    if shards:
        folders.sharded(folder, "diffusion_pytorch_model.fp16", half)
        index = folder / "diffusion_pytorch_model.fp16.safetensors.index.json"
        index.rename(folder / "diffusion_pytorch_model.safetensors.index.fp16.json")
    else:
        save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    decoder = folders.variants(folders.KL)[0]
    same(load_variant(folder / "decoder"), decoder)
    (folder / KL_FILE).unlink()
    read_half = load_variant(folder / "decoder").module.state_dict()
    assert torch.equal(read_half["conv_in.weight"], decoder.module.state_dict()["conv_in.weight"].half().float())
    save_file(half, folder / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(UserError, match="keep one, or rename it"):
        load_variant(folder / "decoder")


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("conv_shaped", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_attention_of_old_autoencoders(old, conv_shaped, tmp_path):
    folder = folders.write(folders.KL, tmp_path / "x")

    def rename(name):
        for new, former in OLD.items() if old else ():
            name = name.replace(f".{new}.", f".{former}.")
        return name

    def shape(name, tensor):
        return tensor[:, :, None, None] if conv_shaped and ".attentions." in name and tensor.dim() == 2 else tensor

    change(folder / KL_FILE, rename, shape)
    assert any("query" in name for name in load_file(folder / KL_FILE)) == old
    for part, made in zip(("decoder", "encoder"), folders.variants(folders.KL), strict=True):
        same(load_variant(folder / part), made)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("position_ids", [False, True])
def test_text_encoders_of_both_transformers(prefix, position_ids, tmp_path):
    folder = folders.write(folders.CLIP, tmp_path / "x")
    tensors = {prefix + n.removeprefix("text_model."): t for n, t in load_file(folder / CLIP_FILE).items()}
    if position_ids:
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(9)[None]
    save_file(tensors, folder / CLIP_FILE)
    if not prefix:
        config = json.loads((folder / "config.json").read_text())
        config = {k: v for k, v in config.items() if k not in ("architectures", "torch_dtype")} | {"dtype": "float32"}
        (folder / "config.json").write_text(json.dumps(config))
    same(load_variant(folder), folders.variants(folders.CLIP)[0])


def test_a_pipeline_names_its_components(tmp_path):
    folder = folders.pipeline(tmp_path / "sd")
    decoder, encoder = folders.variants(folders.KL)
    same(load_variant(folder / "decoder"), decoder)
    same(load_variant(folder / "vae" / "encoder"), encoder)
    same(load_variant(folder / "unet"), folders.variants(folders.UNET)[0])
    same(load_variant(folder / "text_encoder"), folders.variants(folders.CLIP)[0])
    for leaf, made in (("decoder", decoder), ("encoder", encoder)):
        same(load_variant(find(f"stable-diffusion-1.5/{leaf}", folder)), made)
        same(load_variant(find(f"stable-diffusion-1.5/{leaf}", folder / "vae")), made)
    assert read_arch(find("x/unet", folder)).kind == "unet.unet"
    assert load_variant(folder / "decoder", "a/b").component == "a/b"


def test_a_folder_without_an_index_is_a_pipeline_all_the_same(tmp_path):
    folder = folders.pipeline(tmp_path / "sd")
    (folder / "model_index.json").unlink()
    same(load_variant(find("x/decoder", folder)), folders.variants(folders.KL)[0])


def test_latents_are_the_unets(tmp_path):
    """Twice the factor: latents twice as large, and the same pictures from them."""
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for scale, shift in ((0.5, None), (1.0, None), (1.0, 0.25)):
        folder = folders.write(
            folders.KL | {"scaling_factor": scale, "shift_factor": shift}, tmp_path / f"{scale}{shift}"
        )
        encoder, decoder = (load_variant(folder / part).module for part in ("encoder", "decoder"))
        found[scale, shift] = latents = encoder(images)
        torch.testing.assert_close(latents, (encoder.moments(images)[0] - (shift or 0.0)) * scale)
        found["pictures", scale, shift] = decoder(latents)
    torch.testing.assert_close(2 * found[0.5, None], found[1.0, None])
    torch.testing.assert_close(found[1.0, None] - 0.25, found[1.0, 0.25])
    for key in ((0.5, None), (1.0, 0.25)):
        torch.testing.assert_close(found["pictures", *key], found["pictures", 1.0, None], rtol=0, atol=1e-5)
    assert found["pictures", 1.0, None].std() > 0.001


def test_the_two_halves_of_one_file_have_different_keys(tmp_path):
    from compress.plan import _folder_digest

    folder = folders.write(folders.KL, tmp_path / "x")
    decoder, encoder = (_folder_digest(folder / part) for part in ("decoder", "encoder"))
    assert decoder != encoder and decoder.keys() == {"config.json", KL_FILE, "part"}


def test_a_tensor_is_read_alone(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "c": torch.tensor(2.5).half(),
        "d": torch.zeros(0, 3),
    }
    tensors |= {"e": torch.arange(4, dtype=torch.int8), "f": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "t.safetensors")
    entries = header(tmp_path / "t.safetensors")
    assert entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = read(entries[name])
        assert back.dtype == tensor.dtype and torch.equal(back, tensor)


@pytest.mark.slow
def test_a_large_file_is_in_memory_once(tmp_path):
    """Beside the weights, there is room for the largest tensor alone."""
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom compress.components import load_variant\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "m = load_variant(Path(sys.argv[1])).module\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(p.nbytes for p in m.parameters()) // 1024)"
    )
    config = folders.CLIP | {"vocab_size": 65536, "hidden_size": 128}
    folder = folders.write(config, tmp_path / "x", torch.float16)
    ran = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    taken, held = map(int, ran.stdout.split())
    assert held > 30_000 and taken < 1.8 * held + 20_000  # the modules that reading imports are in it


# -------------------------------------------------------------------------------------------------------- true sizes

SD1 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
}
SD2 = SD1 | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
BK_BASE = SD1 | {"layers_per_block": 1}
BK_SMALL = BK_BASE | {"mid_block_type": None}
BK_TINY = BK_SMALL | {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# Rombach et al. 2022 and the model cards of Stable Diffusion; Kim et al. 2023 (arXiv:2305.15798), table 1, in millions;
# Podell et al. 2023 (arXiv:2307.01952), table 1: 2.6 billion, 2,567,463,684 in the released file.
PUBLISHED = {
    "SD-1.5": (SD1, 859_520_964, 0),
    "SD-2.1": (SD2, 865_910_724, 0),
    "SDXL": (SDXL, 2_567_463_684, 0),
    "BK-SDM-Base": (BK_BASE, 579.4e6, 1e-4),
    "BK-SDM-Small": (BK_SMALL, 482.3e6, 2e-4),
    "BK-SDM-Tiny": (BK_TINY, 323.4e6, 1e-4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_unet_has_the_published_size(name):
    config, parameters, tolerance = PUBLISHED[name]
    arch = Arch(kind="unet.unet", config=grammars()["UNet2DConditionModel"].read(config, "unet"))
    with torch.device("meta"):
        count = sum(p.numel() for p in build(arch).parameters())
    assert count == pytest.approx(parameters, rel=tolerance, abs=0)


def test_known_folders_are_the_presets():
    """The configuration of Stable Diffusion 1.5's folders builds what `stable-diffusion-1.5` names."""
    kl = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
    kl |= {key: folders.KL[key] for key in ("down_block_types", "up_block_types")}
    clip = {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 768, "intermediate_size": 3072}
    clip |= {"num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
    for name, config, part in (
        ("UNet2DConditionModel", SD1, "unet"),
        ("AutoencoderKL", kl, "decoder"),
        ("AutoencoderKL", kl, "encoder"),
        ("CLIPTextModel", clip, "text_encoder"),
    ):
        preset = read_arch(find(f"stable-diffusion-1.5/{part}"))
        assert grammars()[name].read(config, part) == preset.config
    tiny = {"encoder_block_out_channels": [64] * 4, "decoder_block_out_channels": [64] * 4}
    for part in ("decoder", "encoder"):
        assert grammars()["AutoencoderTiny"].read(tiny, part) == read_arch(find(f"taesd/{part}")).config


def test_every_class_is_found_by_its_file():
    known = grammars()
    assert known.keys() == folders.CONFIGS.keys()
    for name, grammar in known.items():
        assert grammar.name == name and re.fullmatch(r"[A-Z]\w+", name)
        for part, kind in grammar.parts.items():
            assert components.kind_of(kind).config and part in grammar.prefixes
    with torch.device("meta"):
        assert build(read_arch(find("taesd/decoder"))) is not None
