"""`vae.decoder` is the kind `decoder` of the file compress/components/vae.py; nothing to register."""

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from compress.errors import UserError
from compress.nn.structure import Kind
from compress.records import Arch


def kind_of(arch_kind: str) -> Kind:
    """The kind that a component file declares.

    Raises:
        UserError: no such kind; names those that exist.
    """
    room, _, name = arch_kind.partition(".")
    files = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_")]
    kinds = importlib.import_module(f"compress.components.{room}").KINDS if room in files else {}
    if name not in kinds:
        known = [f"{f}.{k}" for f in files for k in importlib.import_module(f"compress.components.{f}").KINDS]
        raise UserError(f"no component of kind '{arch_kind}'; known: {', '.join(known)}")
    return kinds[name]


def build(arch: Arch) -> nn.Module:
    """The module that an architecture describes, in eval mode, with arbitrary weights."""
    return kind_of(arch.kind).build(arch.config).eval()


def arch_to_json(arch: Arch) -> dict[str, Any]:
    """What arch.json holds."""
    return {"schema": 1, "kind": arch.kind, "config": _written(arch.config)}


def _written(config: Any) -> dict[str, Any]:
    """A configuration as plain data, without the fields that live in memory alone."""
    unwritten = {f.name: None for f in fields(config) if not f.metadata.get("stored", True)}
    written = asdict(replace(config, **unwritten))
    return {name: value for name, value in written.items() if name not in unwritten}


def arch_from_json(data: Any, where: Path, origins: Sequence[Any] = ()) -> Arch:
    """The architecture of an arch.json; code that it names is bound to it only where it is among `origins`.

    Raises:
        UserError: not an architecture of a known kind; says which key is wrong.
    """
    if not isinstance(data, dict) or data.get("schema") != 1 or not isinstance(data.get("kind"), str):
        raise UserError(f"{where}: not an architecture file; it needs schema: 1, kind and config")
    try:
        kind = kind_of(data["kind"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    try:
        config: Any = TypeAdapter(kind.config).validate_python(_tuples(data.get("config")))
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(map(str, ('config', *e['loc'])))}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from error
    unknown = _unknown_keys(data["config"], _written(config))
    if unknown:
        raise UserError(f"{where}: config has unknown keys: {', '.join(unknown)}")
    return Arch(kind=data["kind"], config=kind.bind(config, origins) if kind.bind else config)


def _tuples(value: Any) -> Any:
    """JSON has lists where the records have tuples."""
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


def _unknown_keys(given: Any, known: Any, path: str = "") -> list[str]:
    if isinstance(given, dict):
        return [
            name
            for key, value in given.items()
            for name in ([f"{path}{key}"] if key not in known else _unknown_keys(value, known[key], f"{path}{key}."))
        ]
    if isinstance(given, list):
        return [n for i, v in enumerate(given) for n in _unknown_keys(v, known[i], f"{path}{i}.")]
    return []
