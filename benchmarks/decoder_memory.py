"""Compress Stable Diffusion's 49.5M decoder, as diffusers saves it, by a shipped recipe; measure the peak memory.

    python benchmarks/decoder_memory.py [RECIPE [SIZE COUNT]]

The weights are random, so the gates' verdicts on pictures mean nothing; what is shown is that the machinery takes the
folder, ends with a half-width 8-bit variant that loads, and stays within 4 GB. Needs diffusers. Minutes on one core.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from compress.components import load_variant
from compress.nn.qmodules import quantized
from compress.recipe import find

LIMIT = 4 * 2**30
SAVE = """
import sys, torch
from diffusers import AutoencoderKL
torch.manual_seed(0)
blocks = (128, 256, 512, 512)
AutoencoderKL(block_out_channels=blocks, down_block_types=("DownEncoderBlock2D",) * 4,
              up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4).save_pretrained(sys.argv[1])
"""


def main() -> None:
    name, *size = sys.argv[1:] or ["decoder/c50_w8a8"]
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "vae", Path(place) / "run"
        subprocess.run([sys.executable, "-W", "ignore", "-c", SAVE, str(folder)], check=True, capture_output=True)
        text = find(name).read_text(encoding="utf-8")
        if size:
            text = re.sub(r"count: \d+, size: \d+", f"count: {size[1]}, size: {size[0]}", text)
        recipe = Path(place) / "recipe.yaml"
        recipe.write_text(text, encoding="utf-8")
        command = [
            sys.executable,
            "-c",
            "import torch; torch.set_num_threads(1); from compress.cli import entry; entry()",
        ]
        command += ["run", str(recipe), "--checkpoint", str(folder), "--out", str(out)]
        environment = os.environ | {"MDCOMPRESS_CACHE": str(Path(place) / "store"), "OMP_NUM_THREADS": "1"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        started = time.monotonic()
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        print(ran.stdout + ran.stderr)
        print(f"exit code {ran.returncode} after {time.monotonic() - started:.0f} s")
        note = "" if peak > before else " (at most: saving the folder took as much)"
        print(f"peak memory {peak / 2**20:.2f} GiB of {LIMIT / 2**30:.0f}{note}")
        variant = load_variant(out / "variant")
        layers, config = quantized(variant.module), variant.arch.config
        print(f"variant: levels {[level.width for level in config.levels]}, {len(layers)} layers in 8 bits")
        with torch.no_grad():
            image = variant.module(torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
        print(f"one image {list(image.shape)}, finite: {bool(image.isfinite().all())}")
        print(f"weights on disk {(out / 'variant' / 'weights.safetensors').stat().st_size / 2**20:.1f} MiB")
        print(json.dumps(sorted(p.name for p in (out / "artifacts").glob("*"))))
        assert peak * 1024 < LIMIT
        assert {q.layer.bits for q in layers.values()} == {8}
        assert [level.width for level in config.levels] == [256, 256, 128, 64]


if __name__ == "__main__":
    main()
