"""What every test runs under: one thread, no network, an empty store; and a tiny component to compress."""

import ipaddress
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typecheck  # noqa: F401  before anything of ours, whose types it checks
from browser import Browser, executable
from hypothesis import settings
from PIL import Image

from compress.components import save_variant, vae
from compress.records import Arch, Variant

settings.register_profile("house", derandomize=True, database=None, deadline=None)
settings.load_profile("house")

LEVELS = ((16, (16, 16)), (16, (16,)), (8, ()), (8, (8,)))  # width of the stream, inner widths of the blocks
FREQUENCIES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))

LONG = ("e2e/", "docs/", "compress/test_generation", "compress/test_cli", "test_every_", "test_breakages")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that with several workers none has to be waited for at the end."""
    items.sort(key=lambda item: not item.nodeid.removeprefix("tests/").startswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The same bits on every machine, and no fight for its cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection that leaves this machine; for each test anew, as pytest-socket undoes it after each."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))


def guarded(connect: Any) -> Any:
    def checked(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not is_loopback(str(address[0])):
            pytest.fail(f"the network was used: {address}")
        return connect(self, address)

    return checked


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own for each test; made by whoever writes into it."""
    folder = tmp_path_factory.getbasetemp() / f"store-{next(NUMBERS)}"
    monkeypatch.setenv("MDCOMPRESS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """decoder/ and encoder/ of a VAE that keeps eight cosines of each 8x8 patch, and adds a little network."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    levels = [
        vae.Level(width=width, hidden=hidden, step=LEVELS[i + 1][0] if i < 3 else None)
        for i, (width, hidden) in enumerate(LEVELS)
    ]
    sizes: dict[str, Any] = {"latent_channels": 8, "norm_groups": 4, "linear_path": True}
    decoder_config = vae.DecoderConfig(levels=tuple(levels), **sizes)
    encoder_config = vae.EncoderConfig(
        levels=tuple(vae.Level(width=8, hidden=(), step=8 if i < 3 else None) for i in range(4)), **sizes
    )
    decoder, encoder = vae.Decoder(decoder_config), vae.Encoder(encoder_config)
    assert decoder.linear is not None
    assert encoder.linear is not None
    basis = cosines()
    with torch.no_grad():
        for parameter in (decoder.linear.bias, encoder.linear.bias, *encoder.conv_out.parameters()):
            parameter.zero_()
        encoder.linear.weight.copy_(basis / 8)
        decoder.linear.weight.copy_(8 * basis.reshape(8, -1).T[:, :, None, None])
        decoder.conv_out.weight.mul_(0.1)
        decoder.conv_out.bias.zero_()
    for leaf, module, config in (("decoder", decoder, decoder_config), ("encoder", encoder, encoder_config)):
        arch = Arch(kind=f"vae.{leaf}", config=config)
        save_variant(Variant(component=f"tiny/{leaf}", arch=arch, module=module.eval()), folder / leaf)
    return folder


def cosines() -> torch.Tensor:
    """An orthonormal basis [8, 3, 8, 8]: the mean of each colour, then the lowest cosines of brightness."""
    x = torch.arange(8) + 0.5
    waves = torch.stack([torch.cos(torch.pi * k * x / 8) * (0.125 if k == 0 else 0.25) ** 0.5 for k in range(3)])
    mean = torch.outer(waves[0], waves[0])
    colours = [torch.stack([mean * (c == k) for c in range(3)]) for k in range(3)]
    brightness = [torch.outer(waves[v], waves[h]).expand(3, 8, 8) / 3**0.5 for v, h in FREQUENCIES]
    return torch.stack([*colours, *brightness])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 smooth coloured pictures of 64x64 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:64, 0:64] / 64
    for number in range(24):
        waves = sum(
            rng.uniform(-0.15, 0.15, 3) * np.cos(2 * np.pi * (a * x + b * y) + rng.uniform(0, 6))[..., None]
            for a, b in rng.uniform(-1.5, 1.5, (4, 2))
        )
        pixels = np.clip(rng.uniform(0.35, 0.65, 3) + waves, 0, 1)
        Image.fromarray((255 * pixels).round().astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, for pages that are to be looked at; tests that need it are skipped where there is none."""
    if executable() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with Browser.start() as started:
        yield started
