"""Train an f8 VAE from any folder of photographs; resumes from its last checkpoint.

    python scripts/train_vae.py scripts/train_vae.yaml --images PHOTOS [PHOTOS ...] --out runs/vae

Both linear paths start as the principal components of 8x8 patches and the networks start at zero, so training begins at
the quality of plain PCA and climbs from there. Reconstruction (log of the mean squared error, per crop) first, LPIPS in
the phases that ask for it. `runs/vae/log.jsonl` has the PSNR on held-out photographs beside that of PCA alone;
`runs/vae/encoder.safetensors` and `decoder.safetensors` (averaged weights) are written with every checkpoint.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from compress.components.vae import PATCH, Decoder, DecoderConfig, Encoder, EncoderConfig, Level
from compress.distill._lesson import fast_bfloat16

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Autoencoder(nn.Module):
    """Encoder and decoder, trained together."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Reconstruction and mean KL divergence per latent."""
        mean, log_variance = self.encoder.moments(images)
        log_variance = (log_variance - 6.0).clamp(-20.0, 2.0)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        return self.decoder(mean + (0.5 * log_variance).exp() * noise), kl


def build(spec: dict) -> Autoencoder:
    def levels(part: dict) -> tuple[Level, ...]:
        return tuple(Level(width=x["width"], hidden=tuple(x["hidden"]), step=x["step"]) for x in part["levels"])

    common = {"latent_channels": 8, "norm_groups": 8, "linear_path": True}
    return Autoencoder(
        Encoder(EncoderConfig(levels=levels(spec["encoder"]), **common)),
        Decoder(DecoderConfig(levels=levels(spec["decoder"]), **common)),
    )


def find_photographs(folders: list[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    files = sorted(p for folder in folders for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if len(files) <= held_out:
        raise SystemExit(
            f"{len(files)} photographs found in {', '.join(map(str, folders))}; more than {held_out} needed"
        )
    kept_aside = {files[i] for i in np.linspace(0, len(files) - 1, held_out).astype(int)}
    return [f for f in files if f not in kept_aside], sorted(kept_aside)


def random_crop(image: Image.Image, rng: np.random.Generator, size: int, long_side: list[int]) -> np.ndarray:
    """A [size, size, 3] uint8 crop of the photograph shrunk to a random long side, flipped and turned at random."""
    target = np.exp(rng.uniform(*np.log(long_side)))
    shrink = min(max(1.0, max(image.size) / target), min(image.size) / size)
    side = size * shrink
    left, top = rng.uniform(0, image.width - side), rng.uniform(0, image.height - side)
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    array = np.rot90(np.asarray(crop), rng.integers(4))
    return array[:, ::-1] if rng.integers(2) else array


def batch_of(images: list[Image.Image], seed: int, step: int, phase: dict, long_side: list[int]) -> torch.Tensor:
    """Images [batch, 3, crop, crop] in [0, 1]; depends on seed and step alone, so a resumed run sees the same data."""
    rng = np.random.default_rng([seed, step])
    crops = [
        random_crop(images[i], rng, phase["crop"], long_side) for i in rng.integers(len(images), size=phase["batch"])
    ]
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    gain = torch.from_numpy(rng.uniform(0.7, 1.1, (len(crops), 1, 1, 1))).float()
    saturation = torch.from_numpy(rng.uniform(0.6, 1.5, (len(crops), 1, 1, 1))).float()
    grey = batch.mean(dim=1, keepdim=True)
    return ((grey + (batch - grey) * saturation) * gain).clamp(0, 1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def start_from_pca(model: Autoencoder, images: list[Image.Image], seed: int, long_side: list[int]) -> None:
    """Solve both linear paths by PCA of 8x8 patches (whitened latents) and zero both networks' last convolutions."""
    phase = {"crop": 96, "batch": 256}
    batches = torch.cat([batch_of(images, seed + 1, step, phase, long_side) for step in range(16)])
    patches = nn.functional.pixel_unshuffle(batches, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH * PATCH).double()
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    values, vectors = values[-8:].flip(0), vectors[:, -8:].flip(1)
    to_latent = vectors / values.sqrt()
    encode, decode = model.encoder.linear, model.decoder.linear
    encode.weight.copy_(to_latent.T.reshape(8, 3, PATCH, PATCH))
    encode.bias.copy_(-(mean @ to_latent))
    decode.weight.copy_((vectors * values.sqrt())[:, :, None, None])
    decode.bias.copy_(mean)
    for conv in (model.encoder.conv_out, model.decoder.conv_out):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)


def held_out_pictures(files: list[Path], long_side: int) -> list[torch.Tensor]:
    pictures = []
    for file in files:
        image = Image.open(file).convert("RGB")
        shrink = min(1.0, long_side / max(image.size))
        width, height = (int(side * shrink) // 32 * 32 for side in image.size)
        array = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        pictures.append(torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255)
    return pictures


@torch.no_grad()
def psnr_db(decode, encode, pictures: list[torch.Tensor]) -> float:
    """Mean PSNR of the reconstructions over the pictures."""
    scores = [-10 * (decode(encode(x)).clamp(0, 1) - x).square().mean().log10() for x in pictures]
    return float(torch.stack(scores).mean())


def pca_decode(linear: nn.Conv2d, latents: torch.Tensor) -> torch.Tensor:
    return nn.functional.pixel_shuffle(linear(latents), PATCH)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalized, for the convolutions inside the networks; about half the steps of Adam.

    Source: Jordan et al. 2024 (Muon; Newton-Schulz coefficients); the factor 0.2 * sqrt(larger side), which gives the
    updates Adam's size, from Liu et al. 2025, arXiv:2502.16982. A convolution counts as a matrix [out, in * kh * kw].
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
                update = orthogonalized(update).reshape(parameter.shape)
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * size)


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, roughly: five quintic Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() if fast_bfloat16(matrix.device.type) else matrix.float()
    x = x / (x.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if transposed else x


def make_optimizers(model: Autoencoder) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the convolutions inside; AdamW for first and last layers, linear paths, norms and biases."""
    inside = [p for n, p in model.named_parameters() if ".resnets." in n and p.dim() == 4]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return Muon(inside, lr=1e-3), torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)


def write_atomically(tensors: dict[str, torch.Tensor], path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary)
    temporary.replace(path)


def save_checkpoint(out: Path, step: int, model: nn.Module, average: nn.Module, optimizers: tuple) -> None:
    """Weights, their running average and the optimizers' moments: one file, renamed into place."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{k}": v for k, v in state.items()}
    tensors["step"] = torch.tensor(step)
    write_atomically(tensors, out / "checkpoint.safetensors")
    for part in ("encoder", "decoder"):
        write_atomically(getattr(average, part).state_dict(), out / f"{part}.safetensors")


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


def phase_at(phases: list[dict], step: int) -> tuple[dict, float]:
    """The phase that holds this step, and its learning rate there."""
    for phase in phases:
        if step < phase["steps"]:
            first, last = phase["lr"]
            return phase, first + (last - first) * step / phase["steps"]
        step -= phase["steps"]
    raise ValueError("step beyond the last phase")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--images", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log-every", type=int, default=250, help="steps between checkpoints and held-out scores")
    arguments = parser.parse_args()
    spec = YAML(typ="safe").load(arguments.spec.read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    train_files, held_out_files = find_photographs(arguments.images, spec["held_out"])
    images = [Image.open(f).convert("RGB") for f in train_files]
    pictures = held_out_pictures(held_out_files, spec["held_out_long_side"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(spec["seed"])
    model, average = build(spec), build(spec)
    start_from_pca(model, images, spec["seed"], spec["long_side"])
    pca = build(spec)
    pca.load_state_dict(model.state_dict())
    pca_psnr = psnr_db(lambda z: pca_decode(pca.decoder.linear, z), pca.encoder.linear, pictures)
    average.load_state_dict(model.state_dict())
    model.to(device=device, memory_format=torch.channels_last)
    optimizers = make_optimizers(model)
    checkpoint = arguments.out / "checkpoint.safetensors"
    step = load_checkpoint(checkpoint, model, average, optimizers) if checkpoint.exists() else 0
    total = sum(phase["steps"] for phase in spec["phases"])
    print(
        f"{len(images)} photographs, {len(pictures)} held out, PCA {pca_psnr:.2f} dB, step {step} of {total}",
        flush=True,
    )

    def loss_of(batch: torch.Tensor, noise: torch.Tensor, lpips_weight: float, lpips: nn.Module | None) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            reconstruction, kl = model(batch, noise)
        reconstruction = reconstruction.float()
        error = (reconstruction - batch).square().mean(dim=(1, 2, 3))
        loss = (error + 1e-3).log().mean() + spec["kl"] * kl.float()
        return loss if lpips is None else loss + lpips_weight * lpips(batch, reconstruction).mean()

    compiled = torch.compile(loss_of)
    generator = torch.Generator()
    lpips: nn.Module | None = None
    started, losses = time.monotonic(), []
    with ThreadPoolExecutor(1) as pool:

        def prefetch(at: int):
            return pool.submit(batch_of, images, spec["seed"], at, phase_at(spec["phases"], at)[0], spec["long_side"])

        upcoming = prefetch(step) if step < total else None
        while step < total:
            phase, lr = phase_at(spec["phases"], step)
            batch = upcoming.result().to(device)
            upcoming = prefetch(step + 1) if step + 1 < total else None
            generator.manual_seed(spec["seed"] * 1_000_003 + step)
            noise = torch.randn(batch.shape[0], 8, phase["crop"] // 8, phase["crop"] // 8, generator=generator).to(
                device
            )
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = lr
                optimizer.zero_grad()
            if phase["lpips"] and lpips is None:
                from eval.metrics import lpips as lpips_metric

                lpips = lpips_metric.load(spec["lpips_net"]).to(device)
            loss = compiled(batch, noise, phase["lpips"], lpips)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            decay = min(spec["ema"], (1 + step) / (10 + step))
            with torch.no_grad():
                for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
                    mine.lerp_(theirs.cpu(), 1 - decay)
            if step % arguments.log_every == 0 or step == total:
                save_checkpoint(arguments.out, step, model, average, optimizers)
                average.eval()
                row = {
                    "step": step,
                    "loss": round(float(np.mean(losses)), 4),
                    "lr": lr,
                    "held_out_psnr_db": round(psnr_db(average.decoder, average.encoder, pictures), 3),
                    "pca_psnr_db": round(pca_psnr, 3),
                    "seconds": round(time.monotonic() - started),
                }
                losses.clear()
                with (arguments.out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
                print(row, flush=True)


if __name__ == "__main__":
    main()
