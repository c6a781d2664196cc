"""This exporter's .tflite file against a plain litert-torch conversion of the same model: partitions and time.

    python benchmarks/litert_partitions.py                          # md-tiny/decoder at 128 pixels, one thread
    python benchmarks/litert_partitions.py snapfusion/decoder --pixels 256
    python benchmarks/litert_partitions.py --keep FOLDER            # keeps the plain file, which takes minutes to make
    python benchmarks/litert_partitions.py --variant FOLDER         # ours from a variant, e.g. of a run with static int8

Needs litert-torch. Both files run in one process in LiteRT's interpreter, one call of each in turn, in random order; the
ratio is ours over plain, of the CPU seconds of each pair (of several threads: of the time that passed, so leave them the
machine), with a bootstrap interval and the noise of the plain file against itself. A partition is a run of operators that
XNNPACK takes; an operator left out runs in LiteRT's own kernel between two of them. Components without weights get random
ones, of a fixed seed: time does not depend on them.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.components import build as build_component
from compress.components import find, kind_of, load_variant, read_arch
from compress.export import litert
from compress.export._litert_reader import executed
from compress.nn.structure import example_inputs
from eval.metrics import latency

OUTPUTS = {"vae.decoder": "image", "unet.unet": "prediction", "text_encoder.text_encoder": "states"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("component", nargs="?", default="md-tiny/decoder")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--keep", type=Path, help="folder with plain.tflite from a run before, or for the next one")
    parser.add_argument("--variant", type=Path, help="folder of the variant that ours is written from")
    args = parser.parse_args()
    torch.manual_seed(0)
    folder = find(args.component)
    arch = read_arch(folder)
    stored = (folder / "weights.safetensors").is_file()
    module = load_variant(folder).module if stored else build_component(arch).requires_grad_(False).eval()
    mine = module if args.variant is None else load_variant(args.variant).module
    example = tuple(
        torch.randn(x.shape) if x.is_floating_point() else torch.zeros(x.shape, dtype=x.dtype)
        for x in example_inputs(kind_of(arch.kind), arch.config, args.pixels)
    )
    with tempfile.TemporaryDirectory() as scratch:
        where = args.keep or Path(scratch)
        where.mkdir(parents=True, exist_ok=True)
        seconds = {"plain": _plain(module, example, where / "plain.tflite")}
        started = time.process_time()
        litert.export(mine, example, where / "ours.tflite", litert.Config(), metadata={}, output=OUTPUTS[arch.kind])
        seconds["ours"] = time.process_time() - started
        print(json.dumps(_compared(where, example, args, seconds), indent=1))


def _plain(module: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> float | None:
    """Convert, unless it was done before; CPU seconds."""
    if path.is_file():
        return None
    import litert_torch

    started = time.process_time()
    litert_torch.convert(module, example).export(str(path))
    return time.process_time() - started


def _opened(path: Path, example: tuple[torch.Tensor, ...], threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    for x, held in zip(example, interpreter.get_input_details(), strict=True):
        laid = x if tuple(x.shape) == tuple(held["shape"]) else x.permute(0, 2, 3, 1).contiguous()
        interpreter.set_tensor(held["index"], laid.numpy().astype(held["dtype"]))
    return interpreter


def _compared(
    where: Path, example: tuple[torch.Tensor, ...], args: argparse.Namespace, seconds: dict[str, float | None]
) -> dict[str, Any]:
    opened = {name: _opened(where / f"{name}.tflite", example, args.threads) for name in ("plain", "ours")}
    taken = latency.paired_ratio(
        opened["plain"].invoke,
        opened["ours"].invoke,
        sampling=latency.Sampling(seconds=args.seconds, min_pairs=9),
        clock=time.process_time if args.threads == 1 else time.perf_counter,
        runtime="litert",
        threads=args.threads,
    )
    ran = {name: Counter(executed(interpreter)) for name, interpreter in opened.items()}
    return {
        "component": args.component,
        "pixels": args.pixels,
        "threads": args.threads,
        "ours_over_plain": round(taken.ratio, 3),
        "interval": [round(taken.low, 3), round(taken.high, 3)],
        "noise_floor": round(taken.noise_floor, 3),
        "pairs": taken.pairs,
        "median_ms": {"plain": round(_median(taken.reference_ms)), "ours": round(_median(taken.candidate_ms))},
        "partitions": {name: counted["DELEGATE"] for name, counted in ran.items()},
        "left_out": {name: {c: n for c, n in counted.items() if c != "DELEGATE"} for name, counted in ran.items()},
        "bytes": {name: (where / f"{name}.tflite").stat().st_size for name in opened},
        "conversion_cpu_seconds": {name: None if s is None else round(s, 1) for name, s in seconds.items()},
        "host": taken.host,
    }


def _median(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
