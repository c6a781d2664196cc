"""Train a text encoder and a latent diffusion UNet together on captioned pictures; resumes from its last checkpoint.

    python scripts/train_t2i.py scripts/train_t2i.yaml --pictures FOLDER --encoder md-tiny/encoder \
        --decoder md-tiny/decoder --out runs/t2i [--decay-from STEP]

FOLDER has captions.tsv or captions.json (see calibration/captions.py). Pictures are encoded once (`latents.safetensors`).
The learning rate is constant after a warm-up until --decay-from, then falls to 0 within the configuration's decay steps:
train as long as you like, then start the end. SIGTERM saves and stops; a kill loses what came after the last checkpoint.
`log.jsonl` has the loss, `grid_*.png` samples of the averaged weights, `unet/` and `text_encoder/` those weights.
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
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from calibration.captions import (
    BACKGROUNDS,
    PLAIN,
    TEMPLATES,
    Captioned,
    caption,
    keyword_caption,
    read_captions,
    render,
)
from compress import components
from compress.components._kinds import arch_from_json, arch_to_json
from compress.files import write_bytes, write_json, write_tensors
from compress.sampling import dpm_solver, schedule, tokenizer
from compress.sampling.schedule import Schedule, signal_shares

SHOWN = 48  # prompts in a grid of samples


class TextToImage(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, latents: torch.Tensor, steps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.unet(latents, steps, self.text_encoder(ids))


def build(spec: dict) -> TextToImage:
    """Both parts; whatever is added to a stream starts at zero, so that training begins with the identity."""
    parts = {
        part: components.build(arch_from_json({"schema": 1, "kind": kind, "config": spec[part]}, Path(part)))
        for part, kind in (("text_encoder", "text_encoder.text_encoder"), ("unet", "unet.unet"))
    }
    for name, module in parts["unet"].named_modules():
        last = name.endswith((".conv2", ".conv2.pointwise", ".proj_out")) or name == "conv_out"
        if last and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    for module in parts["text_encoder"].modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    return TextToImage(**parts).train()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One way a picture looks in training: its place in the list of pictures, its background, whether mirrored."""

    picture: int
    background: str
    mirrored: bool


def ways_to_show(pictures: tuple[Captioned, ...], spec: dict) -> list[Shown]:
    """Plain, plain and mirrored where meaning allows, and on a few of the named colours; others are never seen."""
    ways = []
    colours = [name for name in BACKGROUNDS if name != PLAIN]
    for index, picture in enumerate(pictures):
        ways.append(Shown(picture=index, background=PLAIN, mirrored=False))
        if picture.may_be_mirrored and spec["mirrored"] > 0:
            ways.append(Shown(picture=index, background=PLAIN, mirrored=True))
        rng = np.random.default_rng([spec["seed"], *picture.file.encode()])
        for colour in rng.permutation(len(colours))[: spec["backgrounds_per_picture"]]:
            ways.append(Shown(picture=index, background=colours[colour], mirrored=False))
    return ways


@torch.inference_mode()
def encode_once(
    pictures: tuple[Captioned, ...], ways: list[Shown], folder: Path, encoder_name: str, spec: dict, out: Path
) -> torch.Tensor:
    """Latents [ways, z, h, w]; read back when the same pictures went through the same encoder before."""
    encoder = components.load(encoder_name)
    digest = hashlib.sha256(repr((ways, spec["size"])).encode())
    for picture in pictures:
        digest.update((folder / picture.file).read_bytes())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    path = out / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if path.exists():
        return load_file(path)["latents"].float()
    started, found = time.monotonic(), []
    for begin in range(0, len(ways), 32):
        batch = [
            render(
                folder / pictures[way.picture].file,
                size=spec["size"],
                background=way.background,
                mirrored=way.mirrored,
            )
            for way in ways[begin : begin + 32]
        ]
        pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 255
        with torch.autocast("cpu", torch.bfloat16):
            found.append(encoder(pixels.contiguous(memory_format=torch.channels_last)).float().half())
        if begin % 1600 == 0:
            print(json.dumps({"encoded": begin, "of": len(ways), "seconds": round(time.monotonic() - started)}), flush=True)
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
    tokenizer: tokenizer.Tokenizer
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
        ids = torch.from_numpy(self.tokenizer.encode(texts).ids)
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


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for the matrices inside; as in scripts/train_vae.py, matrices batched.

    Source: Jordan et al. 2024 (Muon); the factor 0.2 * sqrt(larger side) from Liu et al. 2025, arXiv:2502.16982.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"]).flatten(1)
                size = 0.2 * max(update.shape) ** 0.5
                parameter.add_(orthogonalized(update).reshape(parameter.shape).float(), alpha=-group["lr"] * size)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: five quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.T if transposed else x


def make_optimizers(model: TextToImage, spec: dict) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside; AdamW for embeddings, first and last layers, depthwise filters, norms and biases."""

    def inside(name: str, parameter: nn.Parameter) -> bool:
        outer = ("embedding", "conv_in", "conv_out", "depthwise")
        return parameter.dim() > 1 and not any(word in name for word in outer)

    matrices = [p for n, p in model.named_parameters() if inside(n, p)]
    rest = [p for n, p in model.named_parameters() if not inside(n, p)]
    adam = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    return (Muon(matrices, lr=1e-3), adam) if spec["muon"] else (
        torch.optim.AdamW(list(model.parameters()), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0),
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


@torch.inference_mode()
def draw(model: TextToImage, texts: list[str], run: dict, *, steps: int, guidance: float, seed: int) -> torch.Tensor:
    """Latents in the encoder's scale for each text, by DPM-Solver++ with classifier-free guidance."""
    words: tokenizer.Tokenizer = run["tokenizer"]
    found = []
    for begin in range(0, len(texts), 24):
        part = texts[begin : begin + 24]
        noise = torch.stack(
            [
                torch.from_numpy(np.random.default_rng([seed, begin + i]).standard_normal(run["shape"], dtype=np.float32))
                for i in range(len(part))
            ]
        )
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            context = model.text_encoder(torch.from_numpy(words.encode([*part, *[""] * len(part)]).ids))

            def predict(sample: torch.Tensor, step: int, context: torch.Tensor = context) -> torch.Tensor:
                doubled = torch.cat([sample, sample]).contiguous(memory_format=torch.channels_last)
                both = model.unet(doubled, torch.full((len(doubled),), float(step)), context).float()
                conditional, unconditional = both.chunk(2)
                return unconditional + guidance * (conditional - unconditional)

            found.append(dpm_solver.solve(predict, noise, run["schedule"], steps))
    latents = torch.cat(found)
    return latents * run["std"][:, None, None] + run["mean"][:, None, None]


@torch.inference_mode()
def save_grid(path: Path, decoder: nn.Module, latents: torch.Tensor, columns: int) -> None:
    """Decoded latents as one PNG."""
    with torch.autocast("cpu", torch.bfloat16):
        pictures = torch.cat([decoder(part) for part in latents.split(16)]).float().clamp(0, 1)
    pixels = (pictures * 255).round().byte().permute(0, 2, 3, 1).numpy()
    blank = np.full((-len(pixels) % columns, *pixels.shape[1:]), 255, np.uint8)
    rows = np.concatenate([pixels, blank]).reshape(-1, columns, *pixels.shape[1:])
    sheet = rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * pixels.shape[2], 3)
    temporary = path.with_name(f".{path.name}")
    Image.fromarray(sheet).save(temporary, format="png")
    temporary.replace(path)


def save_checkpoint(out: Path, step: int, model: nn.Module, average: TextToImage, optimizers: tuple, spec: dict) -> None:
    """Weights, their running average and the optimizers' moments: one file, renamed into place."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{k}": v for k, v in state.items()}
    tensors["step"] = torch.tensor(step)
    write_tensors(out / "checkpoint.safetensors", tensors)
    for part, kind in (("text_encoder", "text_encoder.text_encoder"), ("unet", "unet.unet")):
        module = getattr(average, part)
        write_tensors(out / part / "weights.safetensors", {k: v.half() for k, v in module.state_dict().items()})
        arch = arch_from_json({"schema": 1, "kind": kind, "config": spec[part]}, Path(part))
        write_json(out / part / "arch.json", arch_to_json(arch))


def load_checkpoint(path: Path, model: nn.Module, average: nn.Module, optimizers: tuple) -> int:
    tensors = load_file(path)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    average.load_state_dict({k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")})
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        prefix = f"optimizer.{number}."
        for key, value in tensors.items():
            if key.startswith(prefix):
                index, name = key.removeprefix(prefix).split(".")
                state.setdefault(int(index), {})[name] = value
        if state:
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(tensors["step"])


def make_tokenizer(pictures: tuple[Captioned, ...], spec: dict, path: Path) -> tokenizer.Tokenizer:
    """Trained on every training caption and keyword; read back on a resumed run."""
    if path.exists():
        return tokenizer.load(path)
    colours = [f"on a {name} background" for name in BACKGROUNDS]
    texts = [t.format(name=p.name) for p in pictures for t in TEMPLATES["training"]]
    texts += [", ".join(p.keywords) for p in pictures] + colours
    made = tokenizer.train(texts, vocabulary=spec["text_encoder"]["vocabulary"], length=spec["text_encoder"]["positions"])
    made.save(path)
    return made


def prepare(arguments: argparse.Namespace, spec: dict) -> tuple[Data, dict[str, Any]]:
    """Captions, tokenizer, schedule and latents; everything but the networks."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    pictures = read_captions(arguments.pictures)
    words = make_tokenizer(pictures, spec, out / "tokenizer.json")
    noise = Schedule(**spec["schedule"])
    schedule.save(noise, out / "scheduler.json")
    ways = ways_to_show(pictures, spec)
    latents = encode_once(pictures, ways, arguments.pictures, arguments.encoder, spec, out)
    plain = latents[[i for i, way in enumerate(ways) if way.background == PLAIN]]
    mean, std = plain.mean(dim=(0, 2, 3)), plain.std(dim=(0, 2, 3))
    write_json(out / "latents.json", {"mean": mean.tolist(), "std": std.tolist()})
    shares = torch.from_numpy(signal_shares(noise)).float()
    latents = (latents - mean[:, None, None]) / std[:, None, None]
    rows_of: list[list[int]] = [[] for _ in pictures]
    for row, way in enumerate(ways):
        rows_of[way.picture].append(row)
    data = Data(
        pictures=pictures, ways=ways, rows_of=rows_of, latents=latents, tokenizer=words, shares=shares, spec=spec
    )
    run = {"tokenizer": words, "schedule": noise, "mean": mean, "std": std, "shape": tuple(latents.shape[1:])}
    return data, run


def grid_prompts(pictures: tuple[Captioned, ...], spec: dict) -> list[str]:
    """Names spread over the whole set; every sixth on a background that may be new to the picture."""
    chosen = [pictures[i] for i in np.linspace(3, len(pictures) - 4, SHOWN).astype(int)]
    return [f"{p.name} on a blue background" if i % 6 == 5 else p.name for i, p in enumerate(chosen)]


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
    spec = YAML(typ="safe").load(arguments.spec.read_text())
    data, run = prepare(arguments, spec)
    decoder = components.load(arguments.decoder)
    torch.manual_seed(spec["seed"])
    model = build(spec).to(memory_format=torch.channels_last)
    average = build(spec)
    average.load_state_dict(model.state_dict())
    optimizers = make_optimizers(model, spec)
    checkpoint = arguments.out / "checkpoint.safetensors"
    step = load_checkpoint(checkpoint, model, average, optimizers) if checkpoint.exists() else 0
    last = None if arguments.decay_from is None else arguments.decay_from + spec["decay_steps"]
    last = min(x for x in (last, arguments.until, 10**9) if x is not None)
    sizes = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("text_encoder", "unet")}
    say(arguments.out, {"pictures": len(data.pictures), "ways": len(data.ways), "step": step, "parameters": sizes})

    stop = False

    def asked_to_stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, asked_to_stop)
    began = saved = drawn = time.monotonic()
    since, losses = step, []
    while step < last and not stop:
        rate = learning_rate(spec, step, arguments.decay_from)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
        loss = loss_of(model, data.batch(step), data.shares, spec["min_snr"])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise SystemExit(f"step {step}: the gradient is not finite; lower lr, the last checkpoint is good")
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        step += 1
        kept = min(spec["ema"], (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - kept)
        now = time.monotonic()
        if step % 100 == 0:
            speed = (step - since) * spec["batch"] / (now - began)
            since, began = step, now
            epoch = step * spec["batch"] / len(data.pictures)
            row = {"step": step, "epoch": round(epoch, 1), "loss": round(float(np.mean(losses)), 4), "lr": rate}
            say(arguments.out, row | {"gradient": round(float(norm), 3), "samples_per_s": round(speed, 1)})
            losses.clear()
        if now - saved > 60 * arguments.save_minutes:
            save_checkpoint(arguments.out, step, model, average, optimizers, spec)
            saved = now
        if now - drawn > 60 * arguments.grid_minutes or (drawn == saved and step == last):
            average.eval()
            latents = draw(average, grid_prompts(data.pictures, spec), run, steps=20, guidance=3.0, seed=0)
            save_grid(arguments.out / f"grid_{step:07d}.png", decoder, latents, 8)
            began, since, drawn = time.monotonic(), step, time.monotonic()
    save_checkpoint(arguments.out, step, model, average, optimizers, spec)
    say(arguments.out, {"step": step, "stopped": "asked to" if stop else "at the end"})


def say(out: Path, row: dict[str, Any]) -> None:
    row = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **row}
    with (out / "log.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
