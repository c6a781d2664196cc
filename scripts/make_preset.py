"""Turn the result of train_vae.py into a preset: fp16 weights, arch.json, and a model card with measured numbers.

python scripts/make_preset.py scripts/train_vae.yaml --run runs/vae --name md-tiny --images PHOTOS [PHOTOS ...]
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from calibration import images as photographs
from compress import components
from compress.components._folder import PRESETS
from compress.components._kinds import arch_to_json
from compress.files import write_json, write_tensors, write_text
from compress.records import Arch
from eval.errors import EvalError
from eval.metrics import lpips, psnr, ssim
from scripts.train_vae import build, find_photographs, held_out_pictures, start_from_pca

NETS = ("st-alex", "squeeze")


def scores(pictures: list[torch.Tensor], decode) -> dict[str, float]:
    """Mean PSNR, SSIM and LPIPS of the reconstructions."""
    pairs = [(x, decode(x).clamp(0, 1)) for x in pictures]
    found = {
        "PSNR, dB": torch.cat([psnr.psnr_db(x, y) for x, y in pairs]).mean(),
        "SSIM": torch.cat([ssim.ssim(x, y) for x, y in pairs]).mean(),
    }
    for net in NETS:
        try:
            found[f"LPIPS ({net})"] = torch.cat([lpips.measure(x, y, net=net) for x, y in pairs]).mean()
        except EvalError as error:
            print(f"{net} is left out: {error}")
    return {name: round(float(value), 4) for name, value in found.items()}


def card(name: str, spec: dict, log: list[dict], facts: dict, tables: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        f"# {name}",
        "",
        "An f8 VAE with 8 latent channels in the grammar of MobileDiffusion's (arXiv:2311.16567): four levels, ResNet",
        "blocks with GroupNorm and swish, no attention; beside each network a linear path (one convolution) that starts as",
        "the principal components of 8x8 patches. Written by `scripts/make_preset.py`; trained by `scripts/train_vae.py`.",
        "",
        f"- encoder: {facts['encoder']:,} parameters; decoder: {facts['decoder']:,} parameters; stored in fp16",
        f"- latents: the encoder's mean, standard deviation {facts['latent_std']:.3f} over the held-out photographs",
        f"- data: {facts['train']} photographs (Wikimedia Commons, COCO and Debian wallpapers, under free licences), "
        f"{facts['held_out']} more held out",
        f"- steps: {log[-1]['step']:,}, seed {spec['seed']}, bfloat16 on 2 CPU cores; "
        + ", ".join(f"{p['steps']} of {p['batch']} crops at {p['crop']} px" for p in spec["phases"])
        + f"; LPIPS ({spec['lpips_net']}) in the last {spec['phases'][-1]['steps']}",
        *([f"- history: {spec['history']}"] if spec.get("history") else []),
        "",
    ]
    for title, rows in tables.items():
        columns = list(next(iter(rows.values())))
        lines += [f"{title}:", "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        lines += [f"| {who} | {' | '.join(f'{row[c]:.4g}' for c in columns)} |" for who, row in rows.items()]
        lines.append("")
    lines += [
        "PCA is the linear path alone, solved and not trained: 8 principal components of 8x8 patches.",
        "",
        "Made to be compressed, in demonstrations and tests: it knows what some 130 photographs taught it, smooths",
        "fine texture and small text, and was never trained on faces in particular. Apache-2.0.",
    ]
    return "\n".join(lines) + "\n"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    spec = YAML(typ="safe").load(arguments.spec.read_text())
    log = [json.loads(line) for line in (arguments.run / "log.jsonl").read_text().splitlines()]
    model = build(spec)
    for part in ("encoder", "decoder"):
        module = getattr(model, part)
        module.load_state_dict(load_file(arguments.run / f"{part}.safetensors"))
        folder = PRESETS / arguments.name / part
        write_json(folder / "arch.json", arch_to_json(Arch(kind=f"vae.{part}", config=module.config)))
        write_tensors(folder / "weights.safetensors", {k: v.to(torch.float16) for k, v in module.state_dict().items()})
    encoder, decoder = (components.load(f"{arguments.name}/{part}") for part in ("encoder", "decoder"))

    train_files, held_out_files = find_photographs(arguments.images, spec["held_out"])
    pca = build(spec).eval()
    start_from_pca(pca, [Image.open(f).convert("RGB") for f in train_files], spec["seed"], spec["long_side"])
    built_in = photographs.load("photographs", split="evaluation", count=16, size=256)
    held_out = held_out_pictures(held_out_files, spec["held_out_long_side"])
    sets = {
        f"{len(held_out)} held-out photographs, long side {spec['held_out_long_side']} px": held_out,
        "The 16 evaluation crops at 256 px that recipes use by default": list(built_in.images.split(1)),
    }
    tables = {
        title: {
            "PCA": scores(pictures, lambda x: pca.decoder(pca.encoder(x))),
            arguments.name: scores(pictures, lambda x: decoder(encoder(x))),
        }
        for title, pictures in sets.items()
    }
    facts = {
        "encoder": sum(p.numel() for p in encoder.parameters()),
        "decoder": sum(p.numel() for p in decoder.parameters()),
        "train": len(train_files),
        "held_out": len(held_out_files),
        "latent_std": float(torch.cat([encoder(x).flatten() for x in held_out]).std()),
    }
    text = card(arguments.name, spec, log, facts, tables)
    write_text(PRESETS / arguments.name / "README.md", text)
    print(text)


if __name__ == "__main__":
    main()
