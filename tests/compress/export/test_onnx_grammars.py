"""The decoders of other grammars, attention and all, compute in ONNX Runtime what they compute in torch, at any size."""

import pytest
import torch

from compress.components import build, taesd, vae
from compress.records import Arch

pytest.importorskip("onnx", reason="extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="extra onnx is not installed")
pytest.importorskip("onnxscript", reason="extra onnx is not installed")

from compress.export import onnx as export_onnx

ARCHS = {
    "attention": Arch(
        kind="vae.decoder",
        config=vae.DecoderConfig(
            latent_channels=4,
            levels=(
                vae.Level(width=8, hidden=(), step=8),
                vae.Level(width=4, hidden=(4,), step=4, entry=8),
                vae.Level(width=4, hidden=(), step=4),
                vae.Level(width=4, hidden=(), step=None),
            ),
            norm_groups=4,
            linear_path=False,
            mid=vae.Mid(before=(), attention=vae.Attention(keys=6, values=5, scale_width=8), after=()),
            quant_conv=True,
            image_range=(-1.0, 1.0),
        ),
    ),
    "taesd": Arch(
        kind="taesd.decoder",
        config=taesd.DecoderConfig(
            latent_channels=4,
            levels=tuple(
                taesd.Level(width=4, hidden=((4, 4),) if i == 0 else (), step=None if i == 3 else 4) for i in range(4)
            ),
        ),
    ),
}


@pytest.mark.parametrize("name", ARCHS)
def test_the_file_computes_what_torch_computes_at_another_size_too(name, tmp_path):
    torch.manual_seed(0)
    module = build(ARCHS[name])
    with torch.no_grad():
        module.conv_out.bias += 0.5 if name == "taesd" else 0.0  # mid-grey, so that the final clamp hides nothing
        for layer in (m for n, m in module.named_modules() if n.endswith((".q", ".k", "attention.out"))):
            layer.weight.mul_(4)  # scores far from uniform
        latents = torch.randn(2, 4, 4, 4)
        export_onnx.export(module, (latents,), tmp_path / "decoder.onnx", export_onnx.Config(), metadata={})
        run = export_onnx.load(tmp_path / "decoder.onnx", threads=1)
        for x in (latents, torch.randn(1, 4, 6, 3)):
            image = module(x)
            assert image.std() > 0.01
            torch.testing.assert_close(run(x), image, rtol=0, atol=1e-5)
