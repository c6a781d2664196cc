"""What static quantization costs: seconds, CPU seconds and peak memory on a decoder with random weights.

    python benchmarks/static_cost.py                       # 12.4M parameters, 32x32 latents, 16 samples, 2 threads
    python benchmarks/static_cost.py mobilediffusion/decoder --samples 4

Cost depends on the architecture and on the number and size of the samples, not on what the weights are.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from compress.components import build, find, read_arch
from compress.nn.cost import measure
from compress.quantize import static
from compress.records import StageInput, Variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("component", nargs="?", default="snapfusion/decoder")
    parser.add_argument("--latent-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    arch = read_arch(find(args.component))
    module = build(arch).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    side = args.latent_size
    latents = torch.randn(args.samples, arch.config.latent_channels, side, side, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as scratch:
        stage = StageInput(
            variant=Variant(component=args.component, arch=arch, module=module),
            teacher=module,
            inputs=(latents,),
            sample=lambda step, batch, pixels: (latents[:batch],),
            seed=0,
            scratch=Path(scratch),
        )
        wall, cpu = time.monotonic(), time.process_time()
        result = static.apply(stage, static.Config(batch=args.batch))
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "component": args.component,
        "parameters": measure(module, [latents[:1].shape]).parameters,
        "samples": args.samples,
        "latent_size": side,
        "threads": args.threads,
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_seconds_per_thread": round(cpu / args.threads, 1),
        "peak_megabytes": round(peak / 1000),
        "megabytes_before": round(before / 1000),
        "met": all(item.met for item in result.achieved),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
