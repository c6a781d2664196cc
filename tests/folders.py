"""Small folders of other libraries, as config.json and safetensors; written without those libraries."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compress.components import build, write_checkpoint
from compress.components._checkpoints._grammar import grammars
from compress.records import Arch, Variant

KL: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 64,
    "scaling_factor": 0.5,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TINY: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": [8] * 4,
    "decoder_block_out_channels": [4] * 4,
    "num_decoder_blocks": [2, 1, 1, 1],
}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "center_input_sample": False,
    "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
CLIP: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "quick_gelu",
    "hidden_size": 12,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 9,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 12,
    "torch_dtype": "float32",
    "vocab_size": 50,
}
CONFIGS = {"AutoencoderKL": KL, "AutoencoderTiny": TINY, "UNet2DConditionModel": UNET, "CLIPTextModel": CLIP}


def variants(config: dict[str, Any]) -> list[Variant]:
    """The components that a config.json describes, with seeded weights."""
    grammar = grammars()[config.get("_class_name") or config["architectures"][0]]
    found = []
    for part, kind in grammar.parts.items():
        arch = Arch(kind=kind, config=grammar.read(config, part))
        module, generator = build(arch), torch.Generator().manual_seed(len(found))
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.05 + (0.0 if p.dim() > 1 else 0.5))
        found.append(Variant(component=part, arch=arch, module=module.requires_grad_(False)))
    return found


def write(config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A whole folder of one class."""
    library: Any = "diffusers" if "_class_name" in config else "transformers"
    write_checkpoint(variants(config), folder, library=library, dtype=dtype, config=config)
    return folder


def pipeline(folder: Path) -> Path:
    """unet/, vae/, text_encoder/ and tokenizer/ with a model_index.json."""
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    write(KL, folder / "vae")
    write(UNET, folder / "unet")
    write(CLIP, folder / "text_encoder")
    tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tokenizer(folder: Path, *, ids: int = 50, longest: float = 9) -> None:
    """A vocabulary, and the longest text."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({f"t{i}": i for i in range(ids)}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": longest}))


def sharded(folder: Path, stem: str, tensors: dict[str, torch.Tensor], count: int = 3) -> None:
    """The same tensors in several files with an index, in place of one."""
    (folder / f"{stem}.safetensors").unlink(missing_ok=True)
    names = sorted(tensors)
    places = {}
    for i in range(count):
        file = f"{stem}-{i + 1:05}-of-{count:05}.safetensors"
        places |= dict.fromkeys(names[i::count], file)
        save_file({name: tensors[name] for name in names[i::count]}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
