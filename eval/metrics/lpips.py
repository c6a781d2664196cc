"""LPIPS: the distance of two images in the features of a small image network. The net is always named.

Source: Zhang et al. 2018 (arXiv:1801.03924), version 0.1 with scaled inputs: `alex`, `vgg`, `squeeze`; Ghildyal and Liu
2022 (ShiftTolerant-LPIPS, arXiv:2207.13686): `st-alex`, whose first strides are blurred so that a shift by a pixel
costs less. The heads of the first three are read from the installed torchmetrics and st-alex from the installed
stlpips-pytorch, as files: neither package is imported.
Differs: takes [0, 1] and converts; a feature vector of length 0 has gradient 0, not NaN.
Cost: one pass through the net per image (st-alex: 2.5M weights, 4.9 GMACs at 256x256).
"""

import functools
import hashlib
import importlib.util
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.errors import EvalError, MissingPackage, unknown
from eval.metrics import _images

UNIT = ""
HIGHER_IS_BETTER = False
RANGE = (0.0, float("inf"))
NEEDS_NET = True
TAKES = "images"
DEFINITION = "LPIPS 0.1 with scaled inputs; st-alex is ShiftTolerant-LPIPS vST0.0"
NETS = ("st-alex", "alex", "vgg", "squeeze")
SMALLEST = 32  # pixels on each side: below, the deepest features of some nets are empty
BACKBONES = {  # torchvision's own file names; the digits are the start of the file's SHA-256
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
_TAPS = {
    "st-alex": (2, 6, 10, 12, 14),
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}
_WIDTHS = {
    "st-alex": (64, 192, 384, 256, 256),
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}


class Lpips(nn.Module):
    """Distances of pairs of images in [0, 1]. Frozen; differentiable in both images, so it also serves as a loss.

    Values are checked in measurements only: inputs that require a gradient, and compiled graphs, have their shapes
    checked and nothing else, because a look at the values would wait for the device at every training step.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str) -> None:
        super().__init__()
        self.features = _FEATURES[net]()
        self.heads = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in _WIDTHS[net])
        self.taps = _TAPS[net]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[None, :, None, None], persistent=False)

    def _unit_features(self, images: Tensor) -> list[Tensor]:
        x = (2 * images - 1 - self.shift) / self.scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                # the clamp changes no value, but keeps the root's gradient finite where all features are 0
                length = x.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt()
                found.append(x / (length + 1e-10))
        return found

    def forward(self, reference: Tensor, candidate: Tensor) -> Float[Tensor, " n"]:
        """The distance of each pair of two batches [n, 3, h, w] in [0, 1]."""
        if not torch.compiler.is_compiling():
            as_loss = torch.is_grad_enabled() and (reference.requires_grad or candidate.requires_grad)
            check = _images.check_shapes if as_loss else _images.check_pair
            check(reference, candidate, smallest=SMALLEST)
        pairs = zip(self._unit_features(reference), self._unit_features(candidate), self.heads, strict=True)
        return torch.stack([((a - b).square() * head).sum(1).mean((1, 2)) for a, b, head in pairs]).sum(0)


class _Blur(nn.Module):
    """Halve each side behind a [1 2 1] filter. The two pixels of padding are the shift-tolerant variant's."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.zeros(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (2, 2, 2, 2), "reflect"), self.filt, stride=2, groups=len(self.filt))


class _Fire(nn.Module):
    """SqueezeNet's block: 1x1 down to `squeeze`, then 1x1 and 3x3 side by side."""

    def __init__(self, entry: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(entry, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat((self.expand1x1(x), self.expand3x3(x)), 1).relu()


def _relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def _st_alex() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, padding=2), _Blur(64), _relu()),
        *(nn.MaxPool2d(3, 1), _Blur(64), nn.Conv2d(64, 192, 5, padding=2), _relu()),
        *(nn.MaxPool2d(3, 1), _Blur(192), nn.Conv2d(192, 384, 3, padding=1), _relu()),
        *(nn.Conv2d(384, 256, 3, padding=1), _relu(), nn.Conv2d(256, 256, 3, padding=1), _relu()),
    )


def _alex() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), _relu()),
        *(nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), _relu()),
        *(nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), _relu()),
        *(nn.Conv2d(384, 256, 3, padding=1), _relu(), nn.Conv2d(256, 256, 3, padding=1), _relu()),
    )


def _vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    entry = 3
    for level, (width, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [nn.MaxPool2d(2)] if level else []
        for _ in range(convolutions):
            layers += [nn.Conv2d(entry, width, 3, padding=1), _relu()]
            entry = width
    return nn.Sequential(*layers)


def _squeeze() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, stride=2), _relu(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(_Fire(64, 16, 64), _Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(_Fire(128, 32, 128), _Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(_Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256)),
    )


_FEATURES = {"st-alex": _st_alex, "alex": _alex, "vgg": _vgg, "squeeze": _squeeze}


def load(net: str, *, backbone: Path | None = None) -> Lpips:
    """Read one net. Nothing is downloaded and no net stands in for another.

    Args:
        net: One of `NETS`.
        backbone: The ImageNet weights of `alex`, `vgg` or `squeeze`; looked up (see `find_backbone`) if not given.

    Raises:
        EvalError: the net is unknown, or a file is missing, damaged or of another network.
    """
    if net not in NETS:
        raise unknown("LPIPS net", net, NETS)
    if net == "st-alex":
        if backbone is not None:
            raise EvalError("st-alex carries its own weights: leave `backbone` out, or name alex, vgg or squeeze")
        return _assemble(net, st_alex_file(), None)
    return _assemble(net, _heads_file(net), find_backbone(net) if backbone is None else Path(backbone))


def measure(reference: Tensor, candidate: Tensor, *, net: str | None = None) -> Float[Tensor, " n"]:
    """LPIPS of each pair of two batches [n, 3, h, w] in [0, 1], without gradients."""
    if net is None:
        raise EvalError(f"lpips needs its net named: {', '.join(NETS)}")
    if net not in NETS:
        raise unknown("LPIPS net", net, NETS)
    module = _measuring(net, *_files(net), str(reference.device))
    _images.check_pair(reference, candidate, smallest=SMALLEST)
    with torch.no_grad():
        found: Tensor = module(reference.float(), candidate.float())
    return found


def digest(net: str, *, backbone: Path | None = None) -> str:
    """SHA-256 of the weights that `load` gives: of names, shapes and values, whatever file they lie in."""
    if backbone is None and net in NETS:
        return _digest_of_measuring(net, *_files(net))
    return _digest(load(net, backbone=backbone))


def _digest(module: Lpips) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(f"{name} {list(tensor.shape)} float32\n".encode())
        found.update(tensor.float().contiguous().numpy().astype("<f4").tobytes())
    return found.hexdigest()


def weights_folders() -> tuple[Path, ...]:
    """Where backbones are looked for: $MDCOMPRESS_WEIGHTS or the user's cache, then torch hub's own folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    own = os.environ.get("MDCOMPRESS_WEIGHTS")
    return (Path(own) if own else cache / "mdcompress" / "weights", Path(torch.hub.get_dir()) / "checkpoints")


def find_backbone(net: str) -> Path:
    """The ImageNet weights of `net`: torchvision's file, or `<net>.backbone.pth` with the features alone.

    Raises:
        EvalError: no such file; says its name, where it was looked for and which net needs none.
    """
    if net not in BACKBONES:
        raise unknown("LPIPS net with a backbone of its own", net, tuple(BACKBONES))
    for folder in weights_folders():
        for name in (BACKBONES[net], f"{net}.backbone.pth"):
            if (folder / name).is_file():
                return folder / name
    places = ", ".join(map(str, weights_folders()))
    raise EvalError(
        f"LPIPS net {net!r} needs {BACKBONES[net]}, which is not in {places}. Fetch it with: mdcompress weights add "
        f"{net} --download; or put the file there (or its folder in MDCOMPRESS_WEIGHTS), or use the net "
        "'st-alex', which works without a download"
    )


def st_alex_file() -> Path:
    """The weights of `st-alex` inside the installed stlpips-pytorch."""
    return _packaged("stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth", install="stlpips-pytorch==0.0.2")


def _heads_file(net: str) -> Path:
    return _packaged("torchmetrics", f"functional/image/lpips_models/{net}.pth", install="torchmetrics")


def _packaged(package: str, inside: str, *, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    raise MissingPackage(
        f"LPIPS reads {inside} from the package {package}, where it was not found: pip install {install}"
    )


def _files(net: str) -> tuple[Path, Path | None]:
    return (st_alex_file(), None) if net == "st-alex" else (_heads_file(net), find_backbone(net))


@functools.lru_cache(maxsize=4)
def _digest_of_measuring(net: str, heads: Path, backbone: Path | None) -> str:
    return _digest(_assemble(net, heads, backbone))


@functools.lru_cache(maxsize=4)
def _measuring(net: str, heads: Path, backbone: Path | None, device: str) -> Lpips:
    return _assemble(net, heads, backbone).to(device)


def _assemble(net: str, heads: Path, backbone: Path | None) -> Lpips:
    state = _own_names(_read(heads))
    if backbone is not None:
        state |= _own_names(_read(backbone))
    with torch.device("meta"):
        module = Lpips(net)
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        raise EvalError(
            f"{backbone or heads} does not hold the weights of LPIPS net {net!r}: {len(wrong)} tensors are missing, "
            f"unexpected or of another shape, first {', '.join(wrong[:3])}"
        )
    if not all(tensor.isfinite().all() for tensor in state.values()):
        raise EvalError(f"{backbone or heads} holds NaN or Inf: fetch the file again")
    module = Lpips(net)
    module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return module.requires_grad_(False).eval()


def _own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of any of the files: `net.slice2.5.weight`, `features.5.weight` and `5.weight` are one."""
    named = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "net":
            named[".".join(("features", *parts[2:]))] = tensor
        elif parts[0].startswith("lin"):
            named[f"heads.{parts[0][3:]}"] = tensor
        elif parts[0].isdigit():
            named[f"features.{name}"] = tensor
        elif parts[0] not in ("classifier", "scaling_layer"):
            named[name] = tensor
    return named


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise EvalError(f"cannot read the weights {path}: {type(error).__name__}; fetch the file again") from error
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise EvalError(f"{path} is not a state dict (names to tensors): fetch the file again")
    return dict(state)
