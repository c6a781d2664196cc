"""8-bit decoders of other tools with their defaults, beside ours: same teacher, same photographs, same runtime, one run.

python benchmarks/peers.py [--component md-tiny/decoder] [--size 256] [--calibration 16] [--evaluation 8] [--seconds 8]

Quality: PSNR of each file's pictures to the float decoder's own pictures, mean and worst over the evaluation
photographs, and LPIPS (st-alex) to the photographs beside the float decoder's. Latency: each file against the float
file, interleaved pairs in ONNX Runtime (in OpenVINO for the last rows), ratio with its interval. Needs the extras
onnx, nncf, lpips, photographs; openvino is measured where it is installed. With --seconds 4 eight minutes on two
Zen 3 cores.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

from calibration import images
from compress import registry
from compress.components import find, load_variant
from compress.nn.batches import outputs, split, take
from compress.quantize import _float_onnx
from compress.quantize._quiet import quiet
from compress.records import Inputs, StageInput, Variant
from eval.metrics import latency, lpips, psnr

OURS = {
    "ours: quantize.static, defaults": ("quantize.static", {}),
    "ours: quantize.static, linear in float": ("quantize.static", {"exclude": ("linear",)}),
    "ours: quantize.static, protect 0.05": ("quantize.static", {"protect": 0.05}),
}


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    decoder = load_variant(find(options.component), options.component)
    encoder = load_variant(find(f"{options.component.rpartition('/')[0]}/encoder")).module
    calibration, _ = latents(encoder, "calibration", options)
    evaluation, truth = latents(encoder, "evaluation", options)
    exact = outputs(decoder.module, evaluation)
    net = lpips.load("st-alex")
    own = float(net(truth, exact).mean())
    print(
        f"{options.component}, {len(truth)} photographs of {options.size} px; float LPIPS {own:.4f}; {latency.host()}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files, base = make_files(decoder, calibration, evaluation, Path(folder))
        for name, path in files.items():
            rows.append(judged(name, path, base, evaluation, exact, truth, net, own, options.seconds))
            print(line(rows[-1]), flush=True)
        for row in in_openvino(files, base, evaluation, exact, truth, net, own, options.seconds):
            rows.append(row)
            print(line(row), flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--component", default="md-tiny/decoder")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--evaluation", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json")
    return parser.parse_args()


def latents(encoder: torch.nn.Module, split_name: str, options: argparse.Namespace) -> tuple[Inputs, torch.Tensor]:
    count = getattr(options, split_name)
    found = images.load("photographs", split=split_name, count=count, size=options.size)
    return (outputs(encoder, (found.images,)),), found.images


def make_files(decoder: Variant, calibration: Inputs, evaluation: Inputs, folder: Path) -> tuple[dict[str, Path], Path]:
    """Every candidate as an ONNX file, and the float one that all are compared with."""
    import onnx

    ours = registry.load("export.onnx")
    example = take(evaluation, 0, 1)
    base = folder / "float.onnx"
    ours.export(decoder.module, example, base, ours.Config(), metadata={})
    plain = folder / "plain.onnx"
    with quiet():
        onnx.save(_float_onnx.traced(decoder.module, example, "this benchmark"), plain)
    files = {
        "ONNX Runtime quantize_static, Conv": ort_static(plain, calibration, folder / "ort_conv.onnx", ["Conv"]),
        "ONNX Runtime quantize_static, all": ort_static(plain, calibration, folder / "ort_all.onnx", None),
        "nncf.quantize on ONNX": nncf_on_onnx(plain, calibration, folder / "nncf.onnx"),
    }
    for name, (method, config) in OURS.items():
        stage = StageInput(
            variant=decoder, teacher=decoder.module, inputs=calibration, sample=no_training, seed=0, scratch=folder
        )
        result = registry.load(method).apply(stage, registry.load(method).Config(**config))
        files[name] = folder / f"{len(files)}.onnx"
        ours.export(result.module, example, files[name], ours.Config(), metadata={})
    return files, base


def no_training(step: int, batch: int, pixels: int) -> Inputs:
    raise RuntimeError("no method here trains")


def ort_static(source: Path, calibration: Inputs, target: Path, operations: list[str] | None) -> Path:
    from onnxruntime import quantization

    arrays = iter([{"latents": x.numpy()} for (x,) in split(calibration, 1)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(arrays, None)

    with quiet():
        quantization.quantize_static(source, target, Reader(), op_types_to_quantize=operations, per_channel=True)
    return target


def nncf_on_onnx(source: Path, calibration: Inputs, target: Path) -> Path:
    import onnx

    with quiet():
        import nncf

        batches = [{"latents": x.numpy()} for (x,) in split(calibration, 1)]
        onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(batches), subset_size=len(batches)), target)
    return target


def in_onnxruntime(path: Path) -> Callable[..., torch.Tensor]:
    return registry.load("export.onnx").load(path, threads=torch.get_num_threads())


def judged(name, path, base, evaluation, exact, truth, net, own, seconds, load=in_onnxruntime, runtime="onnxruntime"):
    run, reference = load(path), load(base)
    made = outputs(run, evaluation, 1).clamp(0, 1)
    example = take(evaluation, 0, 1)
    taken = latency.paired_ratio(
        lambda: reference(*example),
        lambda: run(*example),
        sampling=latency.Sampling(seconds=seconds, min_pairs=9),
        runtime=runtime,
    )
    db = psnr.measure(exact, made)
    return {
        "name": name,
        "runtime": runtime,
        "bytes": path.stat().st_size,
        "psnr_db_mean": float(db.mean()),
        "psnr_db_worst": float(db.min()),
        "lpips_rise": float(net(truth, made).mean()) - own,
        "latency_ratio": taken.ratio,
        "low": taken.low,
        "high": taken.high,
    }


def in_openvino(files, base, evaluation, exact, truth, net, own, seconds):
    """The same files in OpenVINO, where it is installed; it reads QDQ graphs and fuses integer kernels itself."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            import openvino
    except ModuleNotFoundError:
        print("openvino is not installed: its rows are left out")
        return
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}

    def load(path: Path) -> Callable[..., torch.Tensor]:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        return lambda x: torch.from_numpy(compiled([x.numpy()])[0].copy())

    for name, path in files.items():
        yield judged(name, path, base, evaluation, exact, truth, net, own, seconds, load, "openvino f32")


def line(row) -> str:
    return (
        f"{row['name']:40} {row['runtime']:13} {row['bytes'] / 1e6:6.2f} MB  {row['psnr_db_mean']:5.2f} dB "
        f"(worst {row['psnr_db_worst']:5.2f})  LPIPS {row['lpips_rise']:+.4f}  "
        f"latency {row['latency_ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    )


if __name__ == "__main__":
    main()
