"""From our folder to another library's and back; what that library cannot express is named."""

import json
from dataclasses import replace

import folders
import pytest
import tiny
import torch
from safetensors.torch import load_file

from compress import components
from compress.cli import main
from compress.components import build, kind_of, load_variant, save_variant
from compress.conversion import convert
from compress.errors import UserError
from compress.nn.structure import take_channels
from compress.quantize import rtn
from compress.records import Arch


def narrowed(variant, ratio=2):
    """Every channel group at a part of its width."""
    kind, config = kind_of(variant.arch.kind), variant.arch.config
    groups = kind.channel_groups(config)
    arch = Arch(kind=variant.arch.kind, config=kind.with_widths(config, {g.name: g.width // ratio for g in groups}))
    module = build(arch)
    kept = {g.name: torch.arange(g.width // ratio) for g in groups}
    module.load_state_dict(take_channels(variant.module.state_dict(), groups, kept))
    return replace(variant, arch=arch, module=module)


@pytest.fixture
def saved(tmp_path):
    def save(variant, name):
        save_variant(variant, tmp_path / name)
        return tmp_path / name

    return save


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        convert(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", folders.CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_there_and_back_is_bit_identical(name, dtype, tmp_path):
    config = folders.CONFIGS[name]
    folder = folders.write(config, tmp_path / "theirs", dtype)
    library = "transformers" if name == "CLIPTextModel" else "diffusers"
    convert(folder, tmp_path / "straight", layout=library)
    for file in folder.iterdir():
        assert (tmp_path / "straight" / file.name).read_bytes() == file.read_bytes()
    ours = convert(folder, tmp_path / "ours", layout="mdcompress")
    halves = [ours / p.name for p in components.parts_of(folder)] if len(components.parts_of(folder)) > 1 else [ours]
    word = str(dtype).removeprefix("torch.")
    back = convert(
        halves[0], tmp_path / "back", layout=library, companion=halves[-1] if halves[1:] else None, dtype=word
    )
    (file,) = folder.glob("*.safetensors")
    assert (back / file.name).read_bytes() == file.read_bytes()
    for path, other in zip(components.parts_of(folder), components.parts_of(back), strict=True):
        assert components.read_arch(path) == components.read_arch(other)


def test_a_cut_pair_is_written_and_a_cut_decoder_beside_a_whole_encoder_is_not(saved, tmp_path):
    config = folders.KL | {"mid_block_add_attention": False}
    decoder, encoder = folders.variants(config)
    small, whole = saved(narrowed(decoder), "small"), saved(encoder, "encoder")
    convert(small, tmp_path / "pair", layout="diffusers", companion=saved(narrowed(encoder), "small encoder"))
    written = json.loads((tmp_path / "pair" / "config.json").read_text())
    assert written["block_out_channels"] == [4, 4, 8, 8] and written["scaling_factor"] == 0.5
    same = load_variant(tmp_path / "pair" / "decoder").module.state_dict()
    assert all(torch.equal(same[n], t) for n, t in load_variant(small).module.state_dict().items())
    message = refusal(small, tmp_path / "out", layout="diffusers", companion=whole)
    assert (
        "decoder: levels.0.width is 8, not 16" in message and "more" in message and "keep them as arch.json" in message
    )
    assert "give the encoder too, with --with FOLDER" in refusal(small, tmp_path / "out", layout="diffusers")
    assert not (tmp_path / "out").exists()


def test_a_cut_tiny_decoder_is_written_beside_the_whole_encoder(saved, tmp_path):
    decoder, encoder = folders.variants(folders.TINY)
    small = saved(narrowed(decoder), "small")
    convert(small, tmp_path / "out", layout="diffusers", companion=saved(encoder, "encoder"))
    same = load_variant(tmp_path / "out" / "decoder").module.state_dict()
    assert all(torch.equal(same[n], t) for n, t in load_variant(small).module.state_dict().items())


def test_attention_that_was_cut_keeps_its_scale_which_cannot_be_written(saved, tmp_path):
    pair = [saved(narrowed(v), v.component) for v in folders.variants(folders.KL)]
    message = refusal(pair[0], tmp_path / "out", layout="diffusers", companion=pair[1])
    assert "decoder: mid.attention.scale_width is 16, not 8" in message


def test_removed_blocks_and_single_widths_are_named(saved, tmp_path):
    (unet,) = folders.variants(folders.UNET)
    kind = kind_of("unet.unet")
    removed = kind.without_blocks(unet.arch.config, ["down_blocks.0.resnets.0"]).config
    uneven = kind.with_widths(unet.arch.config, {"mid_block.resnets.1.hidden": 8})
    for number, (config, words) in enumerate(
        ((removed, "unet: down.0.blocks.0.hidden is none, not 8"), (uneven, "unet: mid.blocks.1.hidden is 8, not 16"))
    ):
        arch = Arch(kind="unet.unet", config=config)
        folder = saved(replace(unet, arch=arch, module=build(arch)), f"unet{number}")
        assert words in refusal(folder, tmp_path / "out", layout="diffusers")


def test_patches_are_named(saved, tmp_path):
    """Of every kind that can hold them; a library's class has none."""
    cases = [
        (folders.UNET, "diffusers", ("down_blocks.0.resnets.0", "down_blocks.0.attentions.0.transformer_blocks.0"))
    ]
    cases.append((folders.CLIP, "transformers", ("encoder.layers.0",)))
    for number, (config, layout, names) in enumerate(cases):
        (variant,) = folders.variants(config)
        kind = kind_of(variant.arch.kind)
        arch = Arch(kind=variant.arch.kind, config=kind.with_patches(variant.arch.config, names, "affine").config)
        folder = saved(replace(variant, arch=arch, module=build(arch)), f"patched{number}")
        assert "is affine, not" in refusal(folder, tmp_path / "out", layout=layout)


def test_fewer_layers_of_a_text_encoder_can_be_written_and_fewer_heads_cannot(saved, tmp_path):
    (text,) = folders.variants(folders.CLIP)
    kind = kind_of("text_encoder.text_encoder")
    shorter = kind.without_blocks(text.arch.config, ["encoder.layers.0"]).config
    arch = Arch(kind=text.arch.kind, config=shorter)
    convert(saved(replace(text, arch=arch, module=build(arch)), "a"), tmp_path / "shorter", layout="transformers")
    assert json.loads((tmp_path / "shorter" / "config.json").read_text())["num_hidden_layers"] == 1
    arch = Arch(kind=text.arch.kind, config=kind.with_widths(shorter, {"encoder.layers.0.self_attn.heads": 1}))
    folder = saved(replace(text, arch=arch, module=build(arch)), "b")
    assert "layers.0.heads is 1, not 2" in refusal(folder, tmp_path / "out", layout="transformers")


def test_what_is_ours_alone_is_named(saved, tmp_path):
    decoder, encoder = saved(tiny.decoder(), "decoder"), saved(tiny.encoder(), "encoder")
    message = refusal(decoder, tmp_path / "out", layout="diffusers", companion=encoder)
    assert "cannot express" in message and "linear_path is True, not False" in message
    result = rtn.apply(tiny.stage_input(tmp_path), rtn.Config(bits=4))
    quantized = saved(replace(tiny.decoder(), module=result.module), "quantized")
    message = refusal(quantized, tmp_path / "out", layout="diffusers", companion=encoder)
    assert "cannot hold the quantized layers of the decoder" in message and "conv_in" in message


def test_layouts_and_components_that_do_not_belong_together(saved, tmp_path):
    (text,) = folders.variants(folders.CLIP)
    folder = saved(text, "text")
    assert "no class of diffusers holds text_encoder.text_encoder" in refusal(
        folder, tmp_path / "o", layout="diffusers"
    )
    twice = refusal(folder, tmp_path / "o", layout="transformers", companion=folder)
    assert "text_encoder.text_encoder and text_encoder.text_encoder" in twice
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    assert "not empty" in refusal(folder, tmp_path / "taken", layout="transformers")
    assert "leave --with and --dtype away" in refusal(folder, tmp_path / "o", layout="mdcompress", dtype="float16")


def test_the_command(tmp_path, capsys):
    folder = folders.write(folders.KL, tmp_path / "theirs")
    arguments = ["models", "convert", str(folder), "--out", str(tmp_path / "out"), "--as", "diffusers"]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    kept = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in kept.values()} == {torch.bfloat16}
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err


def test_show_counts_a_folder(tmp_path, capsys):
    folder = folders.pipeline(tmp_path / "sd")
    for part, made in (
        ("decoder", folders.variants(folders.KL)[0]),
        ("vae/encoder", folders.variants(folders.KL)[1]),
        ("unet", folders.variants(folders.UNET)[0]),
        ("text_encoder", folders.variants(folders.CLIP)[0]),
    ):
        assert main(["models", "show", str(folder / part), "--pixels", "64", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["parameters"] == sum(p.numel() for p in made.module.parameters()) and shown["trained"]
    save_variant(tiny.decoder(), tmp_path / "ours")
    assert main(["models", "show", str(tmp_path / "ours"), "--pixels", "64"]) == 0
    assert "comes without weights" not in capsys.readouterr().out
