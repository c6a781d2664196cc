"""Where a checkpoint is in its folder: whole pipelines, single components, the two halves of an autoencoder.

A part of a folder is named by a path below it: FOLDER/decoder is the decoder of the AutoencoderKL in FOLDER, or in the
vae/ of the pipeline FOLDER. Such a path need not exist.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.components._checkpoints._grammar import Grammar, grammars
from compress.components._tensors import Entry, header
from compress.errors import UserError
from compress.files import read_json
from compress.headers import shards
from compress.records import Arch

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One component in another library's folder; its configuration is read, its weights are not."""

    folder: Path
    part: str
    grammar: Grammar
    config: Mapping[str, Any]
    arch: Arch

    def files(self) -> tuple[Path, ...]:
        """The files that the component is read from.

        Raises:
            UserError: weights are missing or pickled.
        """
        return (self.folder / "config.json", *_weight_files(self.folder, self.grammar))

    def tensors(self) -> dict[str, Entry]:
        """The part's tensors under their own names, from the headers alone.

        Raises:
            UserError: a file is missing or damaged, or two files hold one tensor.
        """
        grammar, found = self.grammar, dict[str, Entry]()
        for path in self.files()[1:]:
            entries = header(path)
            twice = sorted(set(entries) & set(found))
            if twice:
                raise UserError(f"{path} and {found[twice[0]].file} both hold {twice[0]}; keep one of the two")
            found |= entries
        return {
            name: entry
            for name, entry in found.items()
            if not name.endswith(grammar.ignored or ("\0",)) and self._ours(name)
        }

    def found(self, expected: Mapping[str, Any]) -> dict[str, Entry]:
        """The part's tensors under the names of our module; those that none of its tensors claims keep theirs.

        Args:
            expected: The module's tensors by name, of any device; a shape may differ in ones at its end.
        """
        left, found = self.tensors(), dict[str, Entry]()
        for name, tensor in expected.items():
            theirs = next((n for n in self.grammar.names(self.part, name, self.arch.config) if n in left), None)
            if theirs is not None:
                entry = left.pop(theirs)
                same = _stripped(entry.shape) == _stripped(tensor.shape)
                found[name] = _shaped(entry, tuple(tensor.shape)) if same else entry
        return found | left

    def _ours(self, name: str) -> bool:
        """Whether a tensor is this part's, or nobody's."""
        prefixes = self.grammar.prefixes
        others = tuple(p for part, starts in prefixes.items() if part != self.part for p in starts)
        return name.startswith(prefixes[self.part]) or not name.startswith(others or ("\0",))


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1x1 convolution's weight is a linear layer's."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def _shaped(entry: Entry, shape: tuple[int, ...]) -> Entry:
    return Entry(file=entry.file, dtype=entry.dtype, shape=shape, start=entry.start, stop=entry.stop)


def locate(path: Path) -> Checkpoint | None:
    """The checkpoint component that a path names; None where there is nothing of another library.

    Raises:
        UserError: something is there that cannot be read, or that holds several components: they are named.
    """
    if path.is_file():
        raise UserError(_refused_file(path))
    if (path / "model_index.json").exists():
        raise UserError(_which(path, [part for part, folder in _pipeline().items() if (path / folder).is_dir()]))
    if (path / "config.json").exists():
        grammar = _grammar(path)
        if len(grammar.parts) > 1:
            raise UserError(_which(path, list(grammar.parts)))
        return _checkpoint(path, next(iter(grammar.parts)))
    if path.is_dir():
        _refuse_pickles(path)
        return None
    if (path.parent / "config.json").exists() and path.name in _grammar(path.parent).parts:
        return _checkpoint(path.parent, path.name)
    if (path.parent / "model_index.json").exists() and path.name in _pipeline():
        return locate(_in_pipeline(path.parent, path.name))
    return None


def parts_of(path: Path) -> tuple[Path, ...]:
    """The paths of the components in a folder: both halves of an autoencoder, else the folder itself."""
    if path.is_dir() and not (path / "arch.json").exists() and (path / "config.json").exists():
        grammar = _grammar(path)
        return tuple(path / part for part in grammar.parts) if len(grammar.parts) > 1 else (path,)
    return (path,)


def part_of(checkpoint: Path, part: str) -> Path | None:
    """The path that names a component of a checkpoint folder: a pipeline's, or that of one component.

    Raises:
        UserError: it holds other components, or files that cannot be read.
    """
    if checkpoint.is_file():
        raise UserError(_refused_file(checkpoint))
    folder = _pipeline().get(part, part)
    if (checkpoint / "model_index.json").exists() or (checkpoint / folder / "config.json").exists():
        return _in_pipeline(checkpoint, part)
    if not (checkpoint / "config.json").exists():
        if checkpoint.is_dir():
            _refuse_pickles(checkpoint)
        return None
    grammar = _grammar(checkpoint)
    if part not in grammar.parts:
        raise UserError(f"{checkpoint} holds the {' and the '.join(grammar.parts)} of {grammar.name}, no {part}")
    return checkpoint / part if len(grammar.parts) > 1 else checkpoint


def has_part(checkpoint: Path, part: str) -> bool:
    """Whether a folder has the configuration of this component, in a folder of its own below it."""
    return (checkpoint / _pipeline().get(part, part) / "config.json").exists()


def _pipeline() -> dict[str, str]:
    """Component -> its folder in a pipeline."""
    return {part: grammar.folder for grammar in grammars().values() for part in grammar.parts}


def _in_pipeline(pipeline: Path, part: str) -> Path:
    folder = pipeline / _pipeline().get(part, part)
    if not (folder / "config.json").exists():
        there = ", ".join(sorted(p.parent.name for p in pipeline.glob("*/config.json"))) or "none"
        raise UserError(
            f"{pipeline} has no {folder.name}/config.json, which {part} is read from (it has {there}); "
            "copy or download the folder again, whole"
        )
    return part_of(folder, part) or folder


def _checkpoint(folder: Path, part: str) -> Checkpoint:
    grammar, config = _grammar(folder), read_json(folder / "config.json")
    try:
        record = grammar.read(config, part)
    except (UserError, ValueError) as error:
        lines = "\n  ".join(str(error).splitlines())
        raise UserError(f"{folder / 'config.json'} ({grammar.name}) cannot be read:\n  {lines}") from error
    grammar.beside(folder, record)
    return Checkpoint(
        folder=folder, part=part, grammar=grammar, config=config, arch=Arch(kind=grammar.parts[part], config=record)
    )


def _grammar(folder: Path) -> Grammar:
    """The class that a config.json names."""
    path, known = folder / "config.json", grammars()
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object; the config.json of a diffusers or transformers folder is one")
    listed = config.get("architectures")
    name = config.get("_class_name") or (listed[0] if isinstance(listed, list) and listed else None)
    if name is None and config.get("model_type") == "clip_text_model":
        name = "CLIPTextModel"
    if name is None:
        raise UserError(f"{path} names no class (_class_name or architectures); known: {', '.join(known)}")
    if not isinstance(name, str) or name not in known:
        raise UserError(f"{path} is of the class {name}, which cannot be read; known: {', '.join(known)}")
    return known[name]


def _weight_files(folder: Path, grammar: Grammar) -> tuple[Path, ...]:
    """The safetensors files of a component: the plain ones, else the only variant (fp16) that there is."""
    stem = grammar.stem
    plain = [folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"]
    single = [p for p in folder.glob(f"{stem}.*.safetensors") if "-of-" not in p.name]
    others = sorted([*single, *folder.glob(f"{stem}.safetensors.index.*.json")])
    found = next((path for path in plain if path.exists()), None)
    if found is None and len(others) > 1:
        raise UserError(
            f"{folder} has {' and '.join(p.name for p in others)}; keep one, or rename it to {plain[0].name}"
        )
    found = found or (others[0] if others else None)
    if found is None:
        _refuse_pickles(folder, grammar)
        raise UserError(f"{folder} has no {plain[0].name}, alone or in shards with {plain[1].name}")
    return shards(found) if found.suffix == ".json" else (found,)


def _which(path: Path, parts: list[str]) -> str:
    return f"{path} holds several components; name one: {', '.join(str(path / part) for part in parts) or 'none found'}"


def _refuse_pickles(folder: Path, grammar: Grammar | None = None) -> None:
    """Pickled weights are programs: they are not opened here. The message is the command that converts them."""
    pickled = sorted(p for p in folder.iterdir() if p.suffix in PICKLES)
    if not pickled:
        return
    if grammar is None or not (folder / "config.json").exists():
        raise UserError(_refused_file(pickled[0]))
    source, target = json.dumps(str(folder)), json.dumps(f"{folder}-safetensors")
    program = (
        f"from {grammar.library} import {grammar.name} as M; "
        f"M.from_pretrained({source}, use_safetensors=False).save_pretrained({target})"
    )
    raise UserError(
        f"{pickled[0]} is a pickle, which can run programs and is not read; convert it with:\n{_run(program)}"
    )


def _run(program: str) -> str:
    return f"  python -c {shlex.quote(program)}"


def _refused_file(path: Path) -> str:
    source, target = json.dumps(str(path)), path.with_suffix("")
    if path.suffix in (".pt", ".pth"):
        program = (
            "import torch; from safetensors.torch import save_file; "
            f"save_file(torch.load({source}, weights_only=True), {json.dumps(f'{target}.safetensors')})"
        )
        return (
            f"{path} is a pickle, which can run programs and is not read; convert its tensors with:\n{_run(program)}\n"
            "  and put them into a folder with the config.json of their class"
        )
    if path.suffix in (*PICKLES, ".safetensors"):
        kind = "holds a whole model in one file" if path.suffix == ".safetensors" else "is a pickle"
        program = (
            "from diffusers import StableDiffusionPipeline as P; "
            f"P.from_single_file({source}).save_pretrained({json.dumps(str(target))})"
        )
        return f"{path} {kind}, which is not read; convert it into a folder with:\n{_run(program)}"
    return f"{path} is a file; give a checkpoint's folder"
