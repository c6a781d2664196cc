"""How much signal is left at each time step: the noise schedule that lies beside a diffusion UNet."""

from dataclasses import fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from compress.errors import UserError
from compress.files import read_json
from compress.sampling import schedule
from compress.sampling.schedule import Schedule

USUAL = Schedule(rescale_betas_zero_snr=False, prediction_type="epsilon")  # of Stable Diffusion 1.x
ASSUMED = "no noise schedule lies beside the UNet: that of Stable Diffusion 1.x was assumed (scaled_linear, 1000 steps)"


def found(folder: Path) -> Path | None:
    """The schedule of a UNet: in its family's folder, its own, or the pipeline's scheduler/."""
    places = (
        folder.parent / "scheduler.json",
        folder / "scheduler.json",
        folder.parent / "scheduler" / "scheduler_config.json",
    )
    return next((place for place in places if place.is_file()), None)


def read(folder: Path) -> Schedule:
    """The schedule of a UNet, or the usual one.

    Raises:
        UserError: the schedule that lies there cannot be read.
    """
    place = found(folder)
    if place is None:
        return USUAL
    return schedule.load(place) if place.name == "scheduler.json" else _theirs(place)


def _theirs(path: Path) -> Schedule:
    """A scheduler_config.json of diffusers; of its keys, those that say how noise is added."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object; copy or download it again")
    names = {field.name for field in fields(Schedule)}
    given = {name: value for name, value in data.items() if name in names}
    if data.get("trained_betas") is not None:
        raise UserError(f"{path}: trained_betas cannot be read; give the UNet's own folder to assume a schedule")
    ours = {
        "rescale_betas_zero_snr": False,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    }
    try:
        return TypeAdapter(Schedule).validate_python(ours | given)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'schedule'}: {e['msg']}" for e in error.errors()]
        raise UserError("\n".join(lines)) from error
