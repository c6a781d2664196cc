"""A text-to-image model from what the user names: a folder or preset with its settings, and any part in its place.

A part is a preset (`md-tiny/unet`), a folder with arch.json (a variant, or a run's folder), or an exported file. Files
run in their own runtime, and torch is not imported where no part needs it. A model's folder holds tokenizer.json,
scheduler.json, latents.json, maybe sampling.json, and per part a folder or a file of its name: unet/, unet.onnx.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from compress.errors import UserError
from compress.export import _run
from compress.files import read_json
from compress.sampling.generator import Generated, Networks, Settings, Way, generate, read_settings
from compress.sampling.parts import DecoderFacts, Part, TextFacts, UNetFacts, assemble

PRESETS = Path(__file__).parent / "components" / "presets"
Leaf = Literal["text_encoder", "unet", "decoder"]
LEAVES: tuple[Leaf, ...] = get_args(Leaf)
OWN_SETTINGS: Mapping[str, tuple[Leaf, ...]] = {  # which parts were trained with which file
    "tokenizer.json": ("text_encoder",),
    "scheduler.json": ("unet",),
    "latents.json": ("unet",),
}
FLAT = 1 / 255  # a picture whose values lie closer together shows nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Usual:
    """sampling.json: how a model is sampled where the user does not say."""

    pixels: int = 128
    steps: int = 20
    guidance: float = 3.0
    solver: Literal["dpm_solver", "ddim"] = "dpm_solver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model put together: networks, settings, and what runs where."""

    networks: Networks
    settings: Settings
    usual: Usual
    parts: Mapping[str, str]  # "unet": "ONNX Runtime, unet.onnx"
    notes: tuple[str, ...]


def open_model(name: str, given: Mapping[Leaf, str | None], *, pixels: int | None, threads: int) -> Model:
    """The model of a folder or preset, with other parts where they are given.

    Raises:
        UserError: something is missing, or the parts do not belong together; says what.
        MissingExtra: a runtime or the tokenizer's package is not installed.
    """
    folder = model_folder(name)
    settings, usual = read_settings(folder), usual_of(folder)
    places = {leaf: _place(folder, leaf, given.get(leaf)) for leaf in LEAVES}
    for leaf, place in places.items():
        _refuse_other_settings(folder, leaf, place)
    text, unet = _text(places["text_encoder"], threads), _unet(places["unet"], threads, settings)
    decoder = _decoder(places["decoder"], threads)
    size = pixels or usual.pixels
    runtimes: dict[Leaf, str] = {"text_encoder": text.runtime, "unet": unet.runtime, "decoder": decoder.runtime}
    return Model(
        networks=assemble(text, unet, decoder, settings, size),
        settings=settings,
        usual=usual,
        parts={leaf: f"{runtimes[leaf]}, {_short(place)}" for leaf, place in places.items()},
        notes=(*_distilled(places["unet"]), *_other_scale(folder, places["decoder"])),
    )


def draw(prompt: str, model: Model, way: Way, told: Callable[[int, int], None]) -> Generated:
    """One picture; `told` hears of the UNet's calls.

    Raises:
        UserError: as `generate`, or the picture is of one flat colour.
    """
    total = way.steps * (1 if way.guidance == 1.0 else 2 if model.networks.most == 1 else 1)
    done = 0

    def counted(*arrays: np.ndarray) -> np.ndarray:
        nonlocal done
        made = model.networks.unet(*arrays)
        done += 1
        told(done, total)
        return made

    networks = Networks(
        text_encoder=model.networks.text_encoder,
        unet=counted,
        decoder=model.networks.decoder,
        latent_shape=model.networks.latent_shape,
        most=model.networks.most,
    )
    made = generate([prompt], networks, model.settings, way)
    if float(made.images.max() - made.images.min()) < FLAT:
        raise UserError(
            f"the picture is of one flat colour ({float(made.images.mean()):.3f} of 1) and is not written: the "
            "decoder, the scale in latents.json and the UNet are not of one training, or a file is damaged"
        )
    return made


def threads_here() -> int:
    """How many threads runtimes get: OMP_NUM_THREADS, or all cores."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))


def drawer(folder: Path, *, threads: int = 1) -> Callable[[str, int], np.ndarray]:
    """What draws a prompt with a seed [3, h, w] by a model's folder alone, sampled as its sampling.json says.

    Raises:
        UserError, MissingExtra: as `open_model`; drawing raises as `generate`.
    """
    model = open_model(str(folder), {}, pixels=None, threads=threads)
    usual = model.usual

    def drawn(prompt: str, seed: int) -> np.ndarray:
        way = Way(solver=usual.solver, steps=usual.steps, guidance=usual.guidance, seed=seed)
        picture: np.ndarray = generate([prompt], model.networks, model.settings, way).images[0]
        return picture

    return drawn


def model_folder(name: str) -> Path:
    """The folder of a model: a path, or a preset's name.

    Raises:
        UserError: there is none with a model's settings.
    """
    for folder in (Path(name), PRESETS / name):
        if (folder / "scheduler.json").is_file():
            return folder
    if (Path(name) / "card.json").is_file():
        raise UserError(
            f"{name}: a zoo entry of one component, not of a whole model; put it into one with --text-encoder, --unet "
            "or --decoder, or give a bundle (mdcompress zoo bundle)"
        )
    known = sorted(p.parent.name for p in PRESETS.glob("*/scheduler.json"))
    raise UserError(
        f"{name}: no text-to-image model; give a folder with tokenizer.json, scheduler.json and latents.json, or a "
        f"preset: {', '.join(known) or 'there is none'}"
    )


def usual_of(folder: Path) -> Usual:
    """How the model of a folder is sampled where nobody says.

    Raises:
        UserError: its sampling.json has keys or values that do not belong there.
    """
    path = folder / "sampling.json"
    if not path.is_file():
        return Usual()
    data = read_json(path)
    known = {field.name for field in fields(Usual)}
    if not isinstance(data, dict) or set(data) - known:
        odd = sorted(set(data) - known) if isinstance(data, dict) else "no object"
        raise UserError(f"{path}: {odd} does not belong here; known keys: {', '.join(sorted(known))}")
    try:
        return TypeAdapter(Usual).validate_python(data)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from error


def _place(folder: Path, leaf: Leaf, given: str | None) -> Path:
    """Where a part is: a file of a runtime, or a folder with arch.json."""
    root = folder if given is None else Path(given)
    choices = [root / leaf, *(root / f"{leaf}{suffix}" for suffix in _run.suffixes())]
    if given is not None:
        choices = [root, *choices, root / "variant", PRESETS / given]
    for place in choices:
        if place.is_file() or (place / "arch.json").is_file() or (place.is_dir() and _is_file(place)):
            return place
        if (place / "scheduler.json").is_file():  # a whole model: its parts have their own names
            continue
        inside = [p for suffix in _run.suffixes() for p in sorted(place.glob(f"*{suffix}"))]
        if inside:
            return inside[0]
    wanted = given or f"{folder}: {leaf}"
    raise UserError(
        f"{wanted}: no such part; a {leaf} is a folder with arch.json, a preset, or a file "
        f"({', '.join(_run.suffixes())})"
    )


def _refuse_other_settings(folder: Path, leaf: Leaf, place: Path) -> None:
    """Settings that lie beside a part and differ from the model's: then the two are not of one training."""
    beside = place.parent
    if beside.resolve() in (folder.resolve(), (folder / leaf).resolve()):
        return
    for name, leaves in OWN_SETTINGS.items():
        theirs = next((p for p in (place / name, beside / name) if p.is_file()), None)
        if leaf in leaves and theirs is not None and read_json(theirs) != read_json(folder / name):
            raise UserError(
                f"{theirs} and {folder / name} differ: this {leaf} was trained with other settings than the model's; "
                f"give --model {theirs.parent}, or parts of one training"
            )


def _other_scale(folder: Path, decoder: Path) -> tuple[str, ...]:
    """Whether a decoder's family has latents of another scale: so it is where a UNet was trained on other pictures."""
    theirs = decoder.parent / "latents.json"
    if not theirs.is_file() or read_json(theirs) == read_json(folder / "latents.json"):
        return ()
    return (
        f"the decoder's family has another scale of latents ({_short(theirs)}) than the model; if the picture looks "
        "washed out, the two are of different encoders",
    )


def _is_file(place: Path) -> bool:
    return place.suffix in _run.suffixes()


def _module(place: Path) -> Any:
    from compress.components import load_variant

    if not (place / "weights.safetensors").is_file():
        raise UserError(
            f"{_short(place)} comes without weights: train it (scripts/train_t2i.py) and give --model FOLDER, or give "
            "a trained part in its place"
        )
    return load_variant(place).module


def _text(place: Path, threads: int) -> Part[TextFacts]:
    if not _is_file(place):
        from compress.sampling.modules import text_part

        return text_part(_module(place))
    net = _run.load(place, threads=threads)
    given, made = net.inputs[0].shape, net.output.shape
    positions = given[1] if len(given) == 2 else None
    facts = TextFacts(positions=positions, vocabulary=None, width=made[2] if len(made) == 3 else None)
    return Part(call=net.call, facts=facts, runtime=net.runtime, most=1)


def _unet(place: Path, threads: int, settings: Settings) -> Part[UNetFacts]:
    if not _is_file(place):
        from compress.sampling.modules import unet_part

        return unet_part(_module(place))
    net = _run.load(place, threads=threads)
    maps = next((slot for slot in net.inputs if len(slot.shape) == 4), _run.Slot(shape=()))
    states = next((slot.shape for slot in net.inputs if len(slot.shape) == 3), (None, None, None))
    channels = len(settings.scale.mean)

    def call(*arrays: np.ndarray) -> np.ndarray:
        return net.call(*arrays, channels=channels)

    facts = UNetFacts(
        channels=_run.channels_of(maps),
        out=_run.channels_of(net.output),
        context=states[2],
        positions=states[1],
        side=_run.side_of(maps),
    )
    return Part(call=call, facts=facts, runtime=net.runtime, most=1)


def _decoder(place: Path, threads: int) -> Part[DecoderFacts]:
    if not _is_file(place):
        from compress.sampling.modules import decoder_part

        return decoder_part(_module(place))
    net = _run.load(place, threads=threads)

    def call(*arrays: np.ndarray) -> np.ndarray:
        return net.call(*arrays, channels=3)

    facts = DecoderFacts(channels=_run.channels_of(net.inputs[0]), side=_run.side_of(net.inputs[0]))
    return Part(call=call, facts=facts, runtime=net.runtime, most=1)


def _distilled(place: Path) -> tuple[str, ...]:
    """What a UNet's own account says of how it wants to be sampled."""
    lineage = place / "lineage.json"
    if not lineage.is_file():
        return ()
    data = read_json(lineage)
    rows = data.get("stages", data) if isinstance(data, dict) else data
    asked = [
        f"this UNet was distilled ({row['method']}) to {int(item['achieved'])} sampling steps, guidance "
        f"{row.get('config', {}).get('guidance', 1.0):g} included: sample it with --steps {int(item['achieved'])} "
        "--guidance 1"
        for row in rows
        for item in row.get("achieved", [])
        if item.get("what") == "sampling steps"
    ]
    return tuple(asked[-1:])


def _short(place: Path) -> str:
    return "/".join(place.parts[-2:])
