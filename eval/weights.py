"""The ImageNet backbones of the standard LPIPS nets: where they are, whether they are the right ones, how to get them.

Files are torchvision's, known by name and pinned by SHA-256; torch hub's own cache is looked into. Nothing is fetched
unless `download` is called.
"""

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from eval.errors import EvalError, unknown
from eval.metrics import lpips

HOST = "https://download.pytorch.org/models/"
CHUNK = 1 << 20
SECONDS = 60  # without an answer

Progress = Callable[[int, int], None]  # bytes so far, bytes in all


@runtime_checkable
class Readable(Protocol):
    """A file, or an answer of a host."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, none at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """One file, exactly."""

    net: str
    file: str
    sha256: str
    bytes: int


PINNED = {
    "alex": Pinned(
        net="alex",
        file=lpips.BACKBONES["alex"],
        sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        bytes=244_408_911,
    ),
    "vgg": Pinned(
        net="vgg",
        file=lpips.BACKBONES["vgg"],
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        bytes=553_433_881,
    ),
    "squeeze": Pinned(
        net="squeeze",
        file=lpips.BACKBONES["squeeze"],
        sha256="b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        bytes=4_958_839,
    ),
}
# SHA-256 of names, shapes and values (`lpips.digest`), for files that hold the features alone. Squeeze's gives the
# published distances of the LPIPS repository's example images.
CONTENT = {"squeeze": "a854956090c95c67868bd89d19993c5fc3e9011f6d29643fec131b92ec09e82c"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is known of one net's weights."""

    net: str
    state: str  # "ok", "missing", "wrong", "packaged": inside an installed package
    path: Path | None
    text: str


def status(net: str) -> Status:
    """Where a net's weights are, and whether they are the pinned ones.

    Raises:
        EvalError: there is no such net.
    """
    if net not in lpips.NETS:
        raise unknown("LPIPS net", net, lpips.NETS)
    try:
        path = lpips.st_alex_file() if net == "st-alex" else lpips.find_backbone(net)
    except EvalError as error:
        cure = (
            f"mdcompress weights add {net} --download ({PINNED[net].bytes / 1e6:.0f} MB)"
            if net in PINNED
            else str(error)
        )
        return Status(net=net, state="missing", path=None, text=cure)
    if net == "st-alex":
        return Status(net=net, state="packaged", path=path, text="comes with stlpips-pytorch")
    return _checked(net, path)


def _checked(net: str, path: Path) -> Status:
    found = sha256(path)
    if found == PINNED[net].sha256:
        return Status(net=net, state="ok", path=path, text=f"SHA-256 {found[:12]}..., as pinned")
    try:
        content = lpips.digest(net, backbone=path)
    except EvalError as error:
        return Status(net=net, state="wrong", path=path, text=str(error))
    if content == CONTENT.get(net):
        return Status(net=net, state="ok", path=path, text=f"the features alone, content {content[:12]}..., as pinned")
    expected = f"expected {PINNED[net].sha256}, {PINNED[net].bytes} bytes"
    return Status(net=net, state="wrong", path=path, text=f"SHA-256 {found}, {path.stat().st_size} bytes; {expected}")


def add(net: str, file: Path) -> Path:
    """Copy a backbone's file to where it is looked for; only the pinned one is taken.

    Raises:
        EvalError: the net has no backbone, there is no such file, or it is another one.
    """
    pinned = _pinned(net)
    if not file.is_file():
        raise EvalError(f"{file}: no such file; give the file {pinned.file} of torchvision")
    checked = _checked(net, file)
    if checked.state != "ok":
        raise EvalError(f"{file} is not the backbone of {net}: {checked.text}")
    name = pinned.file if sha256(file) == pinned.sha256 else f"{net}.backbone.pth"
    with file.open("rb") as stream:
        return _placed(stream, name, None)


def download(net: str, *, progress: Progress = lambda done, whole: None, host: str = HOST) -> Path:
    """Fetch a backbone, check it, and put it where it is looked for.

    Args:
        net: alex, vgg or squeeze.
        progress: Told how many bytes are here, of how many.
        host: Where the file is; its name is appended.

    Raises:
        EvalError: the net has no backbone; the host does not answer; what came is not the pinned file.
    """
    pinned = _pinned(net)
    address = f"{host}{pinned.file}"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:  # noqa: S310 - the host is ours or the test's
            return _placed(answer, pinned.file, pinned, progress)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise EvalError(
            f"{address} cannot be fetched ({reason}); fetch it on another machine and import it with: "
            f"mdcompress weights add {net} --file {pinned.file}"
        ) from error


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pinned(net: str) -> Pinned:
    if net not in PINNED:
        known = ", ".join(PINNED)
        text = "comes with stlpips-pytorch and needs no file" if net == "st-alex" else "is no LPIPS net"
        raise EvalError(f"{net!r} {text}; nets with a backbone of their own: {known}")
    return PINNED[net]


def _placed(stream: Readable, name: str, pinned: Pinned | None, progress: Progress = lambda done, whole: None) -> Path:
    """Write beside, check, rename in; whatever goes wrong, nothing is left."""
    folder = lpips.weights_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    part = Path(temporary)
    try:
        with os.fdopen(handle, "wb") as target:
            if pinned is None:
                while chunk := stream.read(CHUNK):
                    target.write(chunk)
            else:
                _fetch(stream, target, pinned, progress)
        if pinned is not None and sha256(part) != pinned.sha256:
            raise EvalError(
                f"what came for {name} has SHA-256 {sha256(part)}, expected {pinned.sha256}; nothing was kept"
            )
        part.chmod(0o644)
        return part.replace(folder / name)
    finally:
        part.unlink(missing_ok=True)


def _fetch(stream: Readable, target: BinaryIO, pinned: Pinned, progress: Progress) -> None:
    done = 0
    while chunk := stream.read(CHUNK):
        done += len(chunk)
        if done > pinned.bytes:
            raise EvalError(f"{pinned.file} is longer than its {pinned.bytes} bytes; nothing was kept")
        target.write(chunk)
        progress(done, pinned.bytes)
