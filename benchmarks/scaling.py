"""Memory and time of quantization against layers and samples: does either grow faster than the model?

    python benchmarks/scaling.py decoders [--samples 1 2 4] [--latent-size 16]   # static int8, presets of growing size
    python benchmarks/scaling.py unet                                            # 860M parameters, weight-only int8

Each row runs in a process of its own, so that peaks do not mix. Weights are random: cost depends on shapes alone. The UNet
(Stable Diffusion 1.5's, 3.4 GB in float32) is quantized by quantize.rtn, without the clipping search, and counted with the
float weights that it came from.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

DECODERS = ("md-tiny/decoder", "snapfusion/decoder", "mobilediffusion/decoder")
UNET = "stable-diffusion-1.5/unet"


def decoder(component: str, samples: int, side: int, threads: int, answer: Any) -> None:
    """Static int8 of one preset."""
    from compress.components import build, find, read_arch
    from compress.quantize import static

    torch.set_num_threads(threads)
    arch = read_arch(find(component))
    module = build(arch).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(samples, arch.config.latent_channels, side, side, generator=generator)
    answer.send(
        quantized(component, arch, module, (latents,), lambda stage: static.apply(stage, static.Config(batch=1)))
    )


def unet(component: str, threads: int, answer: Any) -> None:
    """Weight-only int8 of a UNet; built without drawing its weights, then filled layer by layer."""
    from compress.components import build, find, read_arch
    from compress.quantize import rtn

    torch.set_num_threads(threads)
    arch = read_arch(find(component))
    with torch.device("meta"):
        module = build(arch)
    module = module.to_empty(device="cpu").requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.uniform_(-0.05, 0.05, generator=generator)
    config = rtn.Config(bits=8, clip=False)
    answer.send(quantized(component, arch, module, (), lambda stage: rtn.apply(stage, config)))


def quantized(component: str, arch: Any, module: torch.nn.Module, inputs: Any, method: Any) -> dict[str, Any]:
    """What one stage takes, the model in memory before and after."""
    from compress.nn.qmodules import quantized as layers_of
    from compress.records import StageInput, Variant

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as scratch:
        stage = StageInput(
            variant=Variant(component=component, arch=arch, module=module),
            teacher=module,
            inputs=inputs,
            sample=lambda step, batch, pixels: inputs,
            seed=0,
            scratch=Path(scratch),
        )
        wall, cpu = time.monotonic(), time.process_time()
        result = method(stage)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {
        "component": component,
        "parameters": sum(p.numel() for p in module.parameters()),
        "layers": len(layers_of(result.module)),
        "samples": len(inputs[0]) if inputs else 0,
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "megabytes_before": round(before / 1000),
        "met": all(item.met for item in result.achieved),
    }


def alone(work: Any, *given: Any) -> dict[str, Any]:
    """Run something in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(*given, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        process.join()
        raise SystemExit(f"{given[0]}: ended with {process.exitcode}") from None
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("decoders", "unet"))
    parser.add_argument("--components", nargs="+", default=DECODERS)
    parser.add_argument("--samples", nargs="+", type=int, default=(1, 2, 4))
    parser.add_argument("--latent-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.what == "unet":
        print(json.dumps(alone(unet, UNET, options.threads)), flush=True)
        return
    for component in options.components:
        for samples in options.samples:
            print(json.dumps(alone(decoder, component, samples, options.latent_size, options.threads)), flush=True)


if __name__ == "__main__":
    main()
