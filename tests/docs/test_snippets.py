"""The Python snippets of docs/snippets.md make the picture that torch makes, each from a file exported here."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from compress import registry

TEXT = (Path(__file__).parents[2] / "docs" / "snippets.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))


class Decoder(nn.Module):
    """Latents [1, 8, h, w] to pictures [1, 3, 8h, 8w], in as few operators as there can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 192, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(3 * nn.functional.pixel_shuffle(self.conv(latents), 8))


def test_every_format_has_a_snippet() -> None:
    assert set(SECTIONS) <= {name.removeprefix("export.") for name in registry.names("export")}
    assert all(len(re.findall(r"```python\n", section)) == 1 for section in SECTIONS.values())
    assert {"onnx", "ort", "openvino"} <= set(SECTIONS)


@pytest.mark.filterwarnings("ignore:This API is experimental")  # ExecuTorch's, whenever it is first imported
@pytest.mark.parametrize("name", SECTIONS)
def test_the_snippet_makes_the_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = registry.load(f"export.{name}")
    for package in exporter.PACKAGES:
        if package != "openvino":  # importing it sends an event; the exporter knows how not to
            pytest.importorskip(package, reason=f"extra {name} is not installed")
    module, latents = Decoder().eval(), torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    exporter.export(module, (latents,), tmp_path / f"decoder{exporter.SUFFIX}", exporter.Config(), metadata={})
    np.save(tmp_path / "latents.npy", latents.numpy())
    (snippet,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], flags=re.DOTALL)
    if "import torch\n" in snippet:  # what it imports is imported here already, and takes many seconds
        monkeypatch.chdir(tmp_path)
        exec(compile(snippet, name, "exec"), {})
    else:
        silent = "import sys\nsys.modules['openvino_telemetry'] = None\n"
        command = [sys.executable, "-c", silent + snippet]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = 255 * module(latents)[0].permute(1, 2, 0).numpy()
    made = np.asarray(Image.open(tmp_path / "picture.png"), dtype=np.float32)
    assert made.shape == (256, 256, 3)
    assert expected.std() > 20
    assert np.abs(made - expected).max() < 0.51 + 1e-2
    if name == "ort":
        assert "Conv" in (tmp_path / "required_operators.config").read_text(encoding="utf-8")
