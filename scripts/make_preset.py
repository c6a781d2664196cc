"""Turn the result of train_vae.py into a preset: fp16 weights, arch.json and nothing else.

python scripts/make_preset.py scripts/train_vae.yaml --run runs/vae --name md-tiny
"""

import argparse
import sys
from pathlib import Path

import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compress.components._folder import PRESETS
from compress.components._kinds import arch_to_json
from compress.files import write_json, write_tensors
from compress.records import Arch
from scripts.train_vae import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--name", required=True)
    arguments = parser.parse_args()
    model = build(YAML(typ="safe").load(arguments.spec.read_text()))
    for part in ("encoder", "decoder"):
        module = getattr(model, part)
        module.load_state_dict(load_file(arguments.run / f"{part}.safetensors"))
        folder = PRESETS / arguments.name / part
        write_json(folder / "arch.json", arch_to_json(Arch(kind=f"vae.{part}", config=module.config)))
        write_tensors(folder / "weights.safetensors", {k: v.to(torch.float16) for k, v in module.state_dict().items()})
        print(f"{folder}: {sum(p.numel() for p in module.parameters()):,} parameters")


if __name__ == "__main__":
    main()
