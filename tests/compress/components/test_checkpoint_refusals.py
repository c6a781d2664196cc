"""What is no checkpoint, or not one that can be read: one clear error each, before any weight is touched if it can be."""

import json
import struct

import folders
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.cli import main
from compress.components import check_variant, find, load_variant, parts_of, read_arch
from compress.errors import UserError

KL_FILE, CLIP_FILE = "diffusion_pytorch_model.safetensors", "model.safetensors"


@pytest.fixture
def vae(tmp_path):
    return folders.write(folders.KL, tmp_path / "vae")


@pytest.fixture
def unet(tmp_path):
    return folders.write(folders.UNET, tmp_path / "unet")


@pytest.fixture
def text(tmp_path):
    return folders.write(folders.CLIP, tmp_path / "text_encoder")


@pytest.fixture
def pipeline(tmp_path):
    return folders.pipeline(tmp_path / "sd")


def refusal(path, act=check_variant):
    with pytest.raises(UserError) as caught:
        act(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def change_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# ------------------------------------------------------------------------------------------------------------- folders


def test_a_folder_that_is_no_checkpoint(tmp_path):
    message = refusal(tmp_path, lambda p: find("x/decoder", p))
    assert "no arch.json here or in decoder/, and no config.json" in message
    assert "arch.json does not exist" in refusal(tmp_path)
    assert "arch.json does not exist" in refusal(tmp_path / "nowhere")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    message = refusal(tmp_path, read_arch)
    assert "is of the class LlamaForCausalLM, which cannot be read; known: AutoencoderKL" in message
    for known in folders.CONFIGS:
        assert known in message
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    assert "VQModel" in refusal(tmp_path, lambda p: find("x/decoder", p))
    (tmp_path / "config.json").write_text(json.dumps({"name": "me"}))
    assert "names no class (_class_name or architectures)" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "7", "\x00", '{"a": NaN'])
def test_a_config_that_is_no_json(vae, content):
    (vae / "config.json").write_text(content)
    message = refusal(vae / "decoder")
    assert "config.json" in message and ("not valid JSON" in message or "not a JSON object" in message)


def test_a_path_to_several_components(vae, pipeline):
    assert f"name one: {vae / 'decoder'}, {vae / 'encoder'}" in refusal(vae)
    message = refusal(pipeline)
    assert all(str(pipeline / part) in message for part in ("decoder", "encoder", "unet", "text_encoder"))


def test_a_pipeline_without_a_component(pipeline):
    for file in (pipeline / "vae").iterdir():
        file.unlink()
    (pipeline / "vae").rmdir()
    message = refusal(pipeline, lambda p: find("x/decoder", p))
    assert f"{pipeline} has no vae/config.json, which decoder is read from (it has text_encoder, unet)" in message
    assert "vae/config.json" in refusal(pipeline / "encoder")


def test_a_folder_of_another_component(unet):
    assert f"{unet} holds the unet of UNet2DConditionModel, no decoder" in refusal(unet, lambda p: find("x/decoder", p))


# ----------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"latent_channels": ...}, "latent_channels is missing"),
        ({"block_out_channels": ...}, "block_out_channels is missing"),
        ({"block_out_channels": [8, 8, 16]}, "block_out_channels: [8, 8, 16]"),
        ({"block_out_channels": [8, 8, 16, "16"]}, "block_out_channels"),
        ({"norm_num_groups": 3}, "8 channels are not a multiple of 3 norm groups"),
        ({"norm_num_groups": 0}, "norm_num_groups: 0"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, 'down_block_types: ["AttnDownEncoderBlock2D"'),
        ({"act_fn": "gelu"}, 'act_fn: "gelu": only "silu" or "swish" can be read'),
        ({"in_channels": 4}, "in_channels: 4: only 3 can be read"),
        ({"latents_mean": [0.0] * 4}, "latents_mean: [0.0, 0.0, 0.0, 0.0]: only null"),
        ({"spatial_norm": True}, "spatial_norm: true is a key that cannot be read"),
        ({"scaling_factor": "large"}, 'scaling_factor: "large"'),
        ({"scaling_factor": 0.0}, "scaling_factor 0.0 be positive"),
        ({"scaling_factor": float("nan")}, "scaling_factor: NaN"),
    ],
)
def test_an_autoencoder_that_cannot_be_read(vae, changes, words):
    change_config(vae, **changes)
    message = refusal(vae / "decoder", read_arch)
    assert words in message and f"{vae / 'config.json'} (AutoencoderKL) cannot be read" in message


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"only_cross_attention": True}, "only_cross_attention: true: only false can be read"),
        ({"class_embed_type": "timestep"}, 'class_embed_type: "timestep" is a key that cannot be read'),
        ({"class_embed_type": None, "num_class_embeds": 10}, "num_class_embeds: 10"),
        ({"addition_embed_type": "image"}, 'addition_embed_type: "image"'),
        ({"addition_embed_type": "text_time"}, "projection_class_embeddings_input_dim and addition_time_embed_dim"),
        ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "down_block_types"),
        ({"down_block_types": ["DownBlock2D"]}, 'down_block_types: ["DownBlock2D"]'),
        ({"up_block_types": ["UpBlock2D"] * 3}, "block_out_channels has 2 stages"),
        ({"layers_per_block": [1, 2, 3]}, "layers_per_block: [1, 2, 3]: block_out_channels has 2 stages"),
        ({"attention_head_dim": 3}, "attention_head_dim: 3 heads: 8 channels are no multiple"),
        ({"transformer_layers_per_block": [[1, 2], 1]}, "reverse_transformer_layers_per_block is missing"),
        ({"time_embedding_type": "fourier"}, 'time_embedding_type: "fourier": only "positional" can be read'),
        ({"cross_attention_dim": [12, 12]}, "cross_attention_dim: [12, 12]"),
        ({"norm_eps": 1e-6}, "norm_eps: 1e-06: only 1e-05 can be read"),
        ({"conv_in_kernel": 5}, "conv_in_kernel: 5: only 3 can be read"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos: false: only true can be read"),
        ({"layers_per_block": ...}, "layers_per_block is missing"),
    ],
)
def test_a_unet_that_cannot_be_read(unet, changes, words):
    change_config(unet, **changes)
    assert words in refusal(unet, read_arch)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"hidden_act": "relu"}, 'hidden_act: "relu"'),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps: 1e-06: only 1e-05 can be read"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5: hidden_size 12 is no multiple"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"architectures": ["CLIPTextModelWithProjection"]}, "CLIPTextModelWithProjection, which cannot be read"),
    ],
)
def test_a_text_encoder_that_cannot_be_read(text, changes, words):
    change_config(text, **changes)
    assert words in refusal(text, read_arch)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"decoder_block_out_channels": [8, 8, 4, 4]}, "decoder_block_out_channels: [8, 8, 4, 4]: only one width"),
        ({"scaling_factor": 0.5}, "scaling_factor: 0.5: only 1.0 can be read"),
        ({"act_fn": "silu"}, 'act_fn: "silu": only "relu" can be read'),
    ],
)
def test_a_tiny_autoencoder_that_cannot_be_read(changes, words, tmp_path):
    folder = folders.write(folders.TINY, tmp_path / "x")
    change_config(folder, **changes)
    assert words in refusal(folder / "decoder", read_arch)


# ----------------------------------------------------------------------------------------------------------- weights


def test_tensors_that_do_not_fit_are_named_with_both_shapes(unet):
    def damage(tensors):
        tensors["conv_in.weight"] = torch.ones(8, 5, 3, 3)
        del tensors["conv_out.bias"]
        tensors["extra.weight"] = torch.ones(2)
        tensors["conv_in.bias"] = torch.ones(8, dtype=torch.int32)

    change_tensors(unet / KL_FILE, damage)
    message = refusal(unet)
    assert "conv_in.weight is [8, 5, 3, 3] in the file, [8, 4, 3, 3] in config.json" in message
    assert "missing tensor conv_out.bias [4]" in message and "unexpected tensor extra.weight [2]" in message
    assert "conv_in.bias is torch.int32 in the file, torch.float32 expected" in message


def test_a_tensor_that_belongs_to_nobody_is_named(vae):
    change_tensors(vae / KL_FILE, lambda tensors: tensors.update({"discriminator.weight": torch.ones(2)}))
    for part in ("decoder", "encoder"):
        assert "unexpected tensor discriminator.weight [2]" in refusal(vae / part)


def test_only_the_half_that_is_damaged_is_refused(vae):
    change_tensors(vae / KL_FILE, lambda tensors: tensors.pop("encoder.conv_in.bias"))
    check_variant(vae / "decoder")
    assert "missing tensor conv_in.bias [8]" in refusal(vae / "encoder")


def test_both_names_of_one_tensor_are_one_too_many(vae):
    old = "decoder.mid_block.attentions.0.query.weight"
    change_tensors(vae / KL_FILE, lambda tensors: tensors.update({old: torch.ones(16, 16)}))
    assert f"unexpected tensor {old}" in refusal(vae / "decoder")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers(value, dtype, tmp_path):
    folder = folders.write(folders.KL, tmp_path / "x", dtype)

    def damage(tensors):
        tensors["decoder.up_blocks.3.resnets.0.conv1.weight"][0, 0, 0, 0] = value

    change_tensors(folder / KL_FILE, damage)
    assert "levels.3.resnets.0.conv1.weight holds NaN or Inf" in refusal(folder / "decoder", load_variant)
    load_variant(folder / "encoder")


def test_missing_shards(unet):
    folders.sharded(unet, "diffusion_pytorch_model", load_file(unet / KL_FILE))
    gone = "diffusion_pytorch_model-00002-of-00003.safetensors"
    (unet / gone).unlink()
    message = refusal(unet)
    assert "names shards that are not there" in message and gone in message
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert "has no weight_map" in refusal(unet)


def test_an_index_cannot_lead_out_of_its_folder(unet, tmp_path):
    save_file({"conv_in.weight": torch.ones(1)}, tmp_path / "elsewhere.safetensors")
    (unet / KL_FILE).unlink()
    index = {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "not there: elsewhere.safetensors" in refusal(unet)


def test_a_tensor_in_two_shards(unet):
    tensors = load_file(unet / KL_FILE)
    folders.sharded(unet, "diffusion_pytorch_model", tensors, count=2)
    second = unet / "diffusion_pytorch_model-00002-of-00002.safetensors"
    change_tensors(second, lambda held: held.update({sorted(tensors)[0]: torch.ones(1)}))
    assert f"both hold {sorted(tensors)[0]}" in refusal(unet)


def test_no_weights(vae):
    (vae / KL_FILE).unlink()
    message = refusal(vae / "decoder")
    assert f"{vae} has no {KL_FILE}, alone or in shards" in message


@pytest.mark.parametrize("kept", [0, 7, 8, 0.3, -1])
def test_a_truncated_file(unet, kept):
    path = unet / KL_FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    message = refusal(unet)
    assert str(path) in message and ("truncated" in message or "not a complete safetensors file" in message)


def test_a_header_that_lies_about_its_size(unet):
    (unet / KL_FILE).write_bytes(struct.pack("<Q", 2**62) + b"{}" * 20)
    assert "its header alone claims 4611686018427387904 bytes, the file has 48" in refusal(unet)


def test_a_type_that_torch_has_and_we_do_not(unet):
    change_tensors(unet / KL_FILE, lambda t: t.update({"conv_in.bias": torch.ones(8).to(torch.float8_e4m3fn)}))
    assert "'conv_in.bias' has the type F8_E4M3" in refusal(unet)


# ----------------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize(
    "name, words",
    [
        ("diffusion_pytorch_model.bin", "from diffusers import UNet2DConditionModel as M; M.from_pretrained("),
        ("diffusion_pytorch_model.fp16.bin", "use_safetensors=False).save_pretrained("),
    ],
)
def test_pickled_weights_are_refused_with_the_command_that_converts_them(unet, name, words):
    (unet / KL_FILE).rename(unet / name)
    message = refusal(unet)
    assert f"{unet / name} is a pickle" in message and words in message


def test_pickled_files(tmp_path, text):
    (text / CLIP_FILE).rename(text / "pytorch_model.bin")
    assert "from transformers import CLIPTextModel as M" in refusal(text)
    (tmp_path / "loose").mkdir()
    for name, words in (
        ("sd.ckpt", "P.from_single_file("),
        ("sd.safetensors", "holds a whole model in one file"),
        ("decoder.pt", "torch.load("),
        ("decoder.pth", "weights_only=True"),
        ("notes.txt", "is a file; give a checkpoint's folder"),
    ):
        path = tmp_path / "loose" / name
        path.write_bytes(b"1234")
        assert words in refusal(path, read_arch)
        assert words in refusal(path, lambda p: find("x/decoder", p))
        if name.endswith(("ckpt", "pt")):
            assert words in refusal(tmp_path / "loose", lambda p: find("x/decoder", p))
        path.unlink()


# ---------------------------------------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_that_does_not_fit(pipeline):
    check_variant(pipeline / "text_encoder")
    folders.tokenizer(pipeline / "tokenizer", ids=51)
    message = refusal(pipeline / "text_encoder", read_arch)
    assert f"{pipeline / 'tokenizer'} gives token ids up to 50" in message and "vocab_size 50" in message
    folders.tokenizer(pipeline / "tokenizer", longest=10)
    message = refusal(pipeline / "text_encoder", read_arch)
    assert "model_max_length 10" in message and "max_position_embeddings 9" in message
    folders.tokenizer(pipeline / "tokenizer", longest=1e30)  # a tokenizer without a limit
    check_variant(pipeline / "text_encoder")
    (pipeline / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<new>": 77}))
    assert "up to 77" in refusal(pipeline / "text_encoder")


def test_a_tokenizer_in_the_encoders_own_folder(text):
    folders.tokenizer(text, ids=60)
    assert "up to 59" in refusal(text)
    (text / "vocab.json").write_text("[1]")
    assert "is no vocabulary" in refusal(text)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("command", ["show", "convert"])
def test_the_command_line_says_it_in_one_error(command, unet, tmp_path, capsys):
    change_config(unet, only_cross_attention=True)
    arguments = ["models", command, str(unet)]
    arguments += ["--out", str(tmp_path / "out"), "--as", "diffusers"] if command == "convert" else []
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "only_cross_attention: true" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_every_class_is_refused_without_its_config(tmp_path):
    for name, config in folders.CONFIGS.items():
        folder = folders.write(config, tmp_path / name)
        paths = parts_of(folder)
        (folder / "config.json").unlink()
        assert "does not exist" in refusal(paths[0])
