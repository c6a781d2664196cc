"""Train a text encoder and a latent diffusion UNet together on captioned pictures; resumes from its last checkpoint.

    python scripts/train_t2i.py scripts/train_t2i.yaml --pictures FOLDER --out runs/t2i [--start md-tiny]
        [--decay-from STEP]

FOLDER has captions.tsv or captions.json (see calibration/captions.py). Pictures are encoded once (`latents-*`). The
learning rate is constant after a warm-up until --decay-from, then falls to 0 within the configuration's decay steps:
train as long as you like, then start the end. SIGTERM saves and stops; a kill loses what came after the last checkpoint.
`log.jsonl` has the loss, `grid_*.png` samples of the averaged weights; `unet/`, `text_encoder/` (those weights, float16)
and three settings files are what scripts/score_t2i.py takes. --start goes on from the weights and settings of such a
folder, or of a preset, with fresh moments.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from score_t2i import sheet
from t2i_data import Data, folder_of, prepare, say
from train_vae import Muon, load_checkpoint

from compress import components
from compress.components._kinds import arch_from_json, arch_to_json
from compress.distill._lesson import fast_bfloat16
from compress.files import write_json, write_tensors
from compress.records import Arch
from compress.sampling.generator import Way, generate
from compress.sampling.modules import from_modules

PARTS = {"text_encoder": "text_encoder.text_encoder", "unet": "unet.unet"}
SHOWN = 48  # prompts in a grid of samples


class TextToImage(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, latents: torch.Tensor, steps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.unet(latents, steps, self.text_encoder(ids))


def architecture(spec: dict, part: str) -> Arch:
    return arch_from_json({"schema": 1, "kind": PARTS[part], "config": spec[part]}, Path(part))


def build(spec: dict) -> TextToImage:
    """Both parts; whatever is added to a stream starts at zero, so that training begins with the identity."""
    parts = {part: components.build(architecture(spec, part)) for part in PARTS}
    for name, module in parts["unet"].named_modules():
        last = name.endswith((".conv2", ".conv2.pointwise", ".proj_out")) or name == "conv_out"
        if last and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for module in parts["text_encoder"].modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return TextToImage(**parts).train()


def make_optimizers(model: TextToImage, spec: dict) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside; AdamW for embeddings, first and last layers, depthwise filters, norms and biases."""

    def inside(name: str, parameter: nn.Parameter) -> bool:
        outer = ("embedding", "conv_in", "conv_out", "depthwise")
        return parameter.dim() > 1 and not any(word in name for word in outer)

    matrices = [p for n, p in model.named_parameters() if inside(n, p)]
    rest = [p for n, p in model.named_parameters() if not inside(n, p)]
    adam = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    return (
        (Muon(matrices, lr=1e-3), adam)
        if spec["muon"]
        else (torch.optim.AdamW(list(model.parameters()), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0),)
    )


def learning_rate(spec: dict, step: int, decay_from: int | None) -> float:
    """Linear warm-up, constant, and a linear fall to 0 from `decay_from` on."""
    rate = spec["lr"] * min(1.0, (step + 1) / spec["warm_up"])
    if decay_from is not None and step >= decay_from:
        rate *= max(0.0, 1 - (step - decay_from) / spec["decay_steps"])
    return rate


def loss_of(model: TextToImage, batch: tuple[torch.Tensor, ...], shares: torch.Tensor, most: float) -> torch.Tensor:
    """Squared error of v, weighted as min-SNR (Hang et al. 2023, arXiv:2303.09556, section 3.4, for v-prediction).

    Differs: SNR + 1 in place of SNR, so that steps without any signal, where the composition is decided, have weight 1.
    """
    clean, ids, steps, noise = batch
    share = shares[steps][:, None, None, None]
    noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
    velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
    device = clean.device.type
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(device, torch.bfloat16, enabled=fast_bfloat16(device)):
        found = model(noisy.contiguous(memory_format=torch.channels_last), steps.float(), ids)
    gain = 1 / (1 - share[:, 0, 0, 0]).clamp(min=1e-8)  # SNR + 1
    weight = gain.clamp(max=most) / gain
    return (weight * (found.float() - velocity).square().mean(dim=(1, 2, 3))).mean()


def save_checkpoint(
    out: Path, step: int, model: nn.Module, average: TextToImage, optimizers: tuple, spec: dict
) -> None:
    """Weights, their running average and the optimizers' moments: one file, renamed into place."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{k}": v for k, v in state.items()}
    tensors["step"] = torch.tensor(step)
    write_tensors(out / "checkpoint.safetensors", tensors)
    for part in PARTS:
        module = getattr(average, part)
        write_tensors(out / part / "weights.safetensors", {k: v.half() for k, v in module.state_dict().items()})
        write_json(out / part / "arch.json", arch_to_json(architecture(spec, part)))


def take_weights(start: str, model: TextToImage) -> None:
    for part in PARTS:
        found = components.load_variant(components.find(part, folder_of(start))).module
        getattr(model, part).load_state_dict(found.state_dict())


def save_grid(out: Path, step: int, average: TextToImage, decoder: nn.Module, data: Data) -> None:
    """Samples of the averaged weights: names spread over the whole set, every sixth on a background."""
    chosen = [data.pictures[i] for i in np.linspace(3, len(data.pictures) - 4, SHOWN).astype(int)]
    prompts = [f"{p.name} on a blue background" if i % 6 == 5 else p.name for i, p in enumerate(chosen)]
    average.eval()
    parts = (average.text_encoder, average.unet, decoder)
    networks = from_modules(*parts, data.settings, pixels=data.spec["size"], bfloat16=fast_bfloat16())
    found = [
        generate(prompts[i : i + 16], networks, data.settings, Way(seed=i)).images for i in range(0, len(prompts), 16)
    ]
    temporary = out / f".grid_{step:07d}.png"
    sheet(np.concatenate(found), 8).save(temporary, format="png")
    temporary.replace(out / f"grid_{step:07d}.png")


class Stopper:
    """Whether SIGTERM has come: the training saves and stops at the next step."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self)

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def train_step(
    step: int, model: TextToImage, average: TextToImage, optimizers: tuple, data: Data, rate: float
) -> tuple[float, float]:
    """Loss and size of the gradient of one step."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
    device = next(model.parameters()).device
    loss = loss_of(
        model, tuple(part.to(device) for part in data.batch(step)), data.shares.to(device), data.spec["min_snr"]
    )
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        raise SystemExit(f"step {step}: the gradient is not finite; lower lr and go on from the last checkpoint")
    for optimizer in optimizers:
        optimizer.step()
    kept = min(data.spec["ema"], (2 + step) / (11 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - kept)
    return float(loss.detach()), float(norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--encoder", default="md-tiny/encoder")
    parser.add_argument("--decoder", default="md-tiny/decoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", help="folder or preset family whose weights and settings to go on from")
    parser.add_argument("--decay-from", type=int, help="step at which the learning rate begins to fall to 0")
    parser.add_argument("--until", type=int, help="step to stop at, even before the end of the decay")
    parser.add_argument("--save-minutes", type=float, default=5.0)
    parser.add_argument("--grid-minutes", type=float, default=20.0)
    arguments = parser.parse_args()
    out = arguments.out
    spec = YAML(typ="safe").load(arguments.spec.read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = prepare(arguments, spec, device)
    decoder = components.load(arguments.decoder).to(device)
    torch.manual_seed(spec["seed"])
    model = build(spec).to(device=device, memory_format=torch.channels_last)
    if arguments.start is not None:
        take_weights(arguments.start, model)
    average = build(spec).to(device)
    average.load_state_dict(model.state_dict())
    optimizers = make_optimizers(model, spec)
    checkpoint = out / "checkpoint.safetensors"
    step = load_checkpoint(checkpoint, model, average, optimizers) if checkpoint.exists() else 0
    ends = (None if arguments.decay_from is None else arguments.decay_from + spec["decay_steps"], arguments.until)
    last = min((end for end in ends if end is not None), default=10**9)
    sizes = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
    say(out, {"pictures": len(data.pictures), "ways": len(data.ways), "step": step, "parameters": sizes})

    stopper, began, since, losses = Stopper(), time.monotonic(), step, []
    saved = drawn = began
    while step < last and not stopper.asked:
        rate = learning_rate(spec, step, arguments.decay_from)
        loss, norm = train_step(step, model, average, optimizers, data, rate)
        losses.append(loss)
        step += 1
        now = time.monotonic()
        if step % 100 == 0:
            row = {"step": step, "epoch": round(step * spec["batch"] / len(data.pictures), 1), "lr": rate}
            row |= {"loss": round(float(np.mean(losses)), 4), "gradient": round(norm, 3)}
            say(out, row | {"samples_per_s": round((step - since) * spec["batch"] / (now - began), 1)})
            since, began = step, now
            losses.clear()
        if now - saved > 60 * arguments.save_minutes:
            save_checkpoint(out, step, model, average, optimizers, spec)
            saved = now
        if now - drawn > 60 * arguments.grid_minutes:
            save_grid(out, step, average, decoder, data)
            drawn = time.monotonic()
    save_checkpoint(out, step, model, average, optimizers, spec)
    save_grid(out, step, average, decoder, data)
    say(out, {"step": step, "stopped": "asked to" if stopper.asked else "at the end"})


if __name__ == "__main__":
    main()
