"""Our components against diffusers and transformers at true size: random weights, saved by them, read by us.

    python benchmarks/checkpoint_equality.py [NAME ...]

Prints the largest difference of the outputs (float32), seconds to read the folder, and peak memory. Each model runs in
processes of its own; Stable Diffusion's UNet takes 3.4 GB of disk and some 4 GB of memory. Needs both libraries.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SD1: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
SD2 = SD1 | {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}
BK = SD1 | {"layers_per_block": 1, "mid_block_type": None}
KL: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
CLIP: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP |= {"num_attention_heads": 12, "hidden_act": "quick_gelu", "projection_dim": 768}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "taesd": ("AutoencoderTiny", {}),
    "sd-vae": ("AutoencoderKL", KL),
    "clip-vit-l-14": ("CLIPTextModel", CLIP),
    "bk-sdm-small-unet": ("UNet2DConditionModel", BK),
    "sd-2.1-unet": ("UNet2DConditionModel", SD2),
    "sd-1.5-unet": ("UNet2DConditionModel", SD1),
}


def made(kind: str, options: dict[str, Any]) -> Any:
    """Their model with random weights; norms are not the identity, so that each must find its place."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    if kind == "CLIPTextModel":
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**options))
    else:
        model = getattr(diffusers, kind)(**options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model.eval()


def inputs(kind: str, model: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """Of each part of the model."""
    torch.manual_seed(1)
    if kind == "CLIPTextModel":
        return {"": (torch.randint(0, model.config.vocab_size, (1, 77)),)}
    if kind == "UNet2DConditionModel":
        text = torch.randn(1, 77, model.config.cross_attention_dim)
        return {"": (torch.randn(1, 4, 8, 8), torch.tensor([500.0]), text)}
    return {"decoder": (torch.randn(1, 4, 8, 8),), "encoder": (torch.rand(1, 3, 64, 64),)}


def theirs(kind: str, model: Any, part: str, given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Their output, on our scales."""
    if kind == "CLIPTextModel":
        return model(*given).last_hidden_state
    if kind == "UNet2DConditionModel":
        return model(*given).sample
    scale = model.config.scaling_factor
    if part == "decoder":
        return (model.decode(given[0] / scale).sample / 2 + 0.5).clamp(0, 1)
    encoded = model.encode(2 * given[0] - 1)
    return (encoded.latents if kind == "AutoencoderTiny" else encoded.latent_dist.mean) * scale


def save(name: str, place: str) -> None:
    """Their folder and their outputs."""
    kind, options = MODELS[name]
    model = made(kind, options)
    model.save_pretrained(f"{place}/model")
    with torch.no_grad():
        found = {part: (given, theirs(kind, model, part, given)) for part, given in inputs(kind, model).items()}
    torch.save(found, f"{place}/outputs.pt")


def compare(name: str, place: str) -> None:
    """Ours, in a process that has not seen theirs."""
    from compress.components import load_variant

    for part, (given, expected) in torch.load(f"{place}/outputs.pt", weights_only=True).items():
        started = time.monotonic()
        module = load_variant(Path(place) / "model" / part).module
        seconds = time.monotonic() - started
        read = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        with torch.no_grad():
            worst = (module(*given) - expected).abs().max().item()
        count = sum(p.numel() for p in module.parameters())
        print(
            f"{name:20} {part or '-':8} {count:>13,} parameters  largest difference {worst:.1e} of {expected.abs().max():.2f}"
            f"  read in {seconds:.1f} s  peak {read:.2f} GiB when read",
            flush=True,
        )
        assert worst < 1e-5 * max(1.0, expected.abs().max().item())


def alone(work: Any, *given: str) -> None:
    """Run something in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=given)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{work.__name__} {given[0]} failed")


def main() -> None:
    for name in sys.argv[1:] or MODELS:
        with tempfile.TemporaryDirectory() as place:
            alone(save, name, place)
            alone(compare, name, place)


if __name__ == "__main__":
    main()
