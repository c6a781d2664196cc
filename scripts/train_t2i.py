"""Train a text encoder and a latent diffusion UNet together on captioned pictures; resumes from its last checkpoint.

    python scripts/train_t2i.py scripts/train_t2i.yaml --pictures FOLDER --out runs/t2i [--decay-from STEP]

FOLDER has captions.tsv or captions.json (see calibration/captions.py). Pictures are encoded once (`latents-*`). The
learning rate is constant after a warm-up until --decay-from, then falls to 0 within the configuration's decay steps:
train as long as you like, then start the end. SIGTERM saves and stops; a kill loses what came after the last checkpoint.
`log.jsonl` has the loss, `grid_*.png` samples of the averaged weights; `unet/`, `text_encoder/` (those weights, float16)
and three settings files are what scripts/score_t2i.py takes.
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from score_t2i import as_images, sheet
from train_vae import Muon, load_checkpoint

from calibration.captions import (
    BACKGROUNDS,
    PLAIN,
    TEMPLATES,
    Captioned,
    Shown,
    caption,
    keyword_caption,
    read_captions,
    render,
    ways_to_show,
)
from compress import components
from compress.components._kinds import arch_from_json, arch_to_json
from compress.files import write_json, write_tensors
from compress.records import Arch
from compress.sampling import latents as latent_files
from compress.sampling import schedule, tokenizer
from compress.sampling.generator import Settings, Way, generate
from compress.sampling.latents import LatentScale
from compress.sampling.modules import from_modules
from compress.sampling.schedule import Schedule, signal_shares

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


@torch.inference_mode()
def encode_once(
    pictures: tuple[Captioned, ...], ways: list[Shown], arguments: argparse.Namespace, size: int, device: torch.device
) -> torch.Tensor:
    """Latents [ways, z, h, w]; read back when the same pictures went through the same encoder before."""
    encoder = components.load(arguments.encoder)
    digest = hashlib.sha256(repr((ways, size)).encode())
    for picture in pictures:
        digest.update((arguments.pictures / picture.file).read_bytes())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    path = arguments.out / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        return load_file(path)["latents"].float()
    encoder.to(device)
    found = []
    for begin in range(0, len(ways), 32):
        pixels = [
            render(
                arguments.pictures / pictures[way.picture].file,
                size=size,
                background=way.background,
                mirrored=way.mirrored,
            )
            for way in ways[begin : begin + 32]
        ]
        with torch.autocast(device.type, torch.bfloat16):
            found.append(encoder(as_images(pixels).to(device)).cpu().half())
        if begin % 1600 == 0:
            say(arguments.out, {"encoded": begin, "of": len(ways)})
    latents = torch.cat(found)
    write_tensors(path, {"latents": latents})
    return latents.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Everything a batch is drawn from."""

    pictures: tuple[Captioned, ...]
    ways: list[Shown]
    rows_of: list[list[int]]  # which of the ways show each picture
    latents: torch.Tensor  # of each way, normalised
    settings: Settings
    shares: torch.Tensor  # of every time step
    spec: dict

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Latents, ids, time steps and noise; depends on seed and step alone, so a resumed run sees the same data."""
        spec, size = self.spec, self.spec["batch"]
        rng = np.random.default_rng([spec["seed"], 1, step])
        rows, texts = [], []
        for picture in self._pictures(step * size, size):
            way = self._way(self.rows_of[picture], rng)
            rows.append(way)
            texts.append(self._text(self.ways[way], rng))
        ids = torch.from_numpy(self.settings.tokenizer.encode(texts).ids)
        spread = (rng.permutation(size) + rng.random(size)) / size  # one time step from each of `size` equal parts
        steps = torch.from_numpy((spread * len(self.shares)).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal((size, *self.latents.shape[1:]), dtype=np.float32))
        return self.latents[rows], ids, steps, noise

    def _pictures(self, begin: int, count: int) -> list[int]:
        """Every picture once an epoch, in an order of its own."""
        total, found = len(self.pictures), []
        for position in range(begin, begin + count):
            if not found or position % total == 0:
                order = np.random.default_rng([self.spec["seed"], 2, position // total]).permutation(total)
            found.append(int(order[position % total]))
        return found

    def _way(self, of_picture: list[int], rng: np.random.Generator) -> int:
        draw = rng.random(2)
        coloured = [i for i in of_picture if self.ways[i].background != PLAIN]
        mirrored = [i for i in of_picture if self.ways[i].mirrored]
        if draw[0] < self.spec["coloured"] and coloured:
            return coloured[int(rng.integers(len(coloured)))]
        return mirrored[0] if draw[1] < self.spec["mirrored"] and mirrored else of_picture[0]

    def _text(self, way: Shown, rng: np.random.Generator) -> str:
        picture, draw = self.pictures[way.picture], rng.random()
        if draw < self.spec["without_text"]:
            return ""
        if draw < self.spec["without_text"] + self.spec["with_keywords"]:
            return keyword_caption(picture, rng, background=way.background)
        return caption(picture, rng, templates=TEMPLATES["training"], background=way.background)


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
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(clean.device.type, torch.bfloat16):
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


def make_tokenizer(pictures: tuple[Captioned, ...], spec: dict, path: Path) -> tokenizer.Tokenizer:
    """Trained on every training caption and keyword; read back on a resumed run."""
    if path.exists():
        return tokenizer.load(path)
    colours = [f"on a {name} background" for name in BACKGROUNDS]
    texts = [t.format(name=p.name) for p in pictures for t in TEMPLATES["training"]]
    texts += [", ".join(p.keywords) for p in pictures] + colours
    made = tokenizer.train(
        texts, vocabulary=spec["text_encoder"]["vocabulary"], length=spec["text_encoder"]["positions"]
    )
    made.save(path)
    return made


def prepare(arguments: argparse.Namespace, spec: dict, device: torch.device) -> Data:
    """Captions, tokenizer, schedule and latents; everything but the networks."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pictures = read_captions(arguments.pictures)
    words = make_tokenizer(pictures, spec, out / "tokenizer.json")
    noises = Schedule(**spec["schedule"])
    schedule.save(noises, out / "scheduler.json")
    ways = ways_to_show(
        pictures, seed=spec["seed"], mirrored=spec["mirrored"] > 0, backgrounds=spec["backgrounds_per_picture"]
    )
    latents = encode_once(pictures, ways, arguments, spec["size"], device)
    plain = latents[[i for i, way in enumerate(ways) if way.background == PLAIN]]
    mean, std = plain.mean(dim=(0, 2, 3)), plain.std(dim=(0, 2, 3))
    scale = LatentScale(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    latent_files.save(scale, out / "latents.json")
    rows_of: list[list[int]] = [[] for _ in pictures]
    for row, way in enumerate(ways):
        rows_of[way.picture].append(row)
    return Data(
        pictures=pictures,
        ways=ways,
        rows_of=rows_of,
        latents=scale.normalised(latents),
        settings=Settings(tokenizer=words, schedule=noises, scale=scale),
        shares=torch.from_numpy(signal_shares(noises)).float(),
        spec=spec,
    )


def save_grid(out: Path, step: int, average: TextToImage, decoder: nn.Module, data: Data) -> None:
    """Samples of the averaged weights: names spread over the whole set, every sixth on a background."""
    chosen = [data.pictures[i] for i in np.linspace(3, len(data.pictures) - 4, SHOWN).astype(int)]
    prompts = [f"{p.name} on a blue background" if i % 6 == 5 else p.name for i, p in enumerate(chosen)]
    average.eval()
    parts = (average.text_encoder, average.unet, decoder)
    networks = from_modules(*parts, data.settings, pixels=data.spec["size"], bfloat16=True)
    found = [
        generate(prompts[i : i + 16], networks, data.settings, Way(seed=i)).images for i in range(0, len(prompts), 16)
    ]
    temporary = out / f".grid_{step:07d}.png"
    sheet(np.concatenate(found), 8).save(temporary, format="png")
    temporary.replace(out / f"grid_{step:07d}.png")


def say(out: Path, row: dict[str, Any]) -> None:
    row = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


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
