"""Modules that a command line names as `module:function`: built, adopted, and put where the pipeline finds components.

The weights go into the store under their digest, so that a run resumes and nothing else needs to know where a teacher
came from; the code itself stays in this process (`Code.origins`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.components import adopt_named, arch_to_json, find, load_variant, save_variant
from compress.errors import UserError
from compress.records import Variant
from compress.store import Store, key_of

EXAMPLE_PIXELS = 64  # side of the image on which named code is tried out


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A decoder and its encoder as component folders, and the code that may build them."""

    teacher: Path | None  # None: the recipe's component, as without code
    companion: Path | None
    origins: tuple[Any, ...]


def named(component: str, *, module: str | None, encoder: str | None, checkpoint: Path | None, store: Store) -> Code:
    """The components that `--module` and `--encoder` name.

    Args:
        component: The recipe's component; the family's own encoder stands in where none is named.
        module: `package.module:function` of the decoder.
        encoder: The same for the encoder, or the name or folder of a component.
        checkpoint: The folder of an earlier variant of this module, to go on from.
        store: Where weights are kept.

    Raises:
        UserError: see `adopt_named`; or no encoder is to be had.
    """
    companion, origins = _companion(component, encoder, module, checkpoint, store)
    if module is None:
        return Code(teacher=None, companion=companion, origins=origins)
    assert companion is not None
    latents = load_variant(companion, origins=origins).module(_picture())
    decoder = adopt_named(module, component, "decoder", latents)
    teacher = None if checkpoint is not None else _kept(store, decoder)
    return Code(teacher=teacher, companion=companion, origins=(*origins, decoder.arch.config.origin))


def alone(module: str, encoder: str | None) -> Variant:
    """The decoder that `module` names, for a look at it; its example input comes from the encoder or from itself.

    Raises:
        UserError: see `adopt_named`.
    """
    latents = None
    if encoder is not None:
        made = (
            adopt_named(encoder, encoder, "encoder", _picture()) if ":" in encoder else load_variant(_folder(encoder))
        )
        latents = made.module(_picture())
    return adopt_named(module, module, "decoder", latents)


def _companion(
    component: str, encoder: str | None, module: str | None, checkpoint: Path | None, store: Store
) -> tuple[Path | None, tuple[Any, ...]]:
    if encoder is not None and ":" in encoder:
        made = adopt_named(encoder, f"{component.rpartition('/')[0]}/encoder", "encoder", _picture())
        return _kept(store, made), (made.arch.config.origin,)
    if encoder is not None:
        return _folder(encoder), ()
    if module is None:
        return None, ()
    try:
        return find(f"{component.rpartition('/')[0]}/encoder"), ()
    except UserError as error:
        raise UserError(
            f"--module {module}: name the encoder that makes its latents with --encoder: package.module:function, a "
            "component such as md-tiny/encoder, or a component folder"
        ) from error


def _folder(encoder: str) -> Path:
    path = Path(encoder)
    return path if (path / "arch.json").exists() else find(encoder)


def _picture() -> torch.Tensor:
    """A picture with every level of grey and some colour."""
    side = EXAMPLE_PIXELS
    ramp = torch.linspace(0.0, 1.0, side)
    return torch.stack([ramp.expand(side, -1), ramp[:, None].expand(-1, side), ramp.flip(0).expand(side, -1)])[None]


def _kept(store: Store, variant: Variant) -> Path:
    """The component folder of a variant in the store."""
    digest = hashlib.sha256()
    for name, tensor in sorted(variant.module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode() + tensor.contiguous().numpy().tobytes())
    key = key_of({"adopted": arch_to_json(variant.arch), "component": variant.component, "weights": digest.hexdigest()})
    return store.get(key) or store.put(key, lambda folder: save_variant(variant, folder))
