"""A Core ML package on the disk: a manifest, a model and its weights, with the same bytes every time.

Source: coremltools 9's ModelPackage (a folder, Manifest.json with fileFormatVersion 1.0.0).
Differs: coremltools gives every item a random identifier; here it is made from the contents of all files, so that equal
packages have equal bytes, and a package that was damaged on the way is found out before a native parser reads it.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from compress.errors import UserError

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
MANIFEST = Path("Manifest.json")


def settle(folder: Path, spec: Any) -> None:
    """Write the model and the manifest of a package that coremltools has saved, anew and always alike."""
    (folder / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    (folder / MANIFEST).write_text(json.dumps(_manifest(folder), indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _manifest(folder: Path) -> dict[str, Any]:
    model, weights = _identifiers(folder)
    entry = {"author": "com.apple.CoreML"}
    items = {
        model: {**entry, "description": "CoreML Model Specification", "name": "model.mlmodel", "path": _inside(MODEL)},
        weights: {**entry, "description": "CoreML Model Weights", "name": "weights", "path": _inside(WEIGHTS.parent)},
    }
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": model}


def _inside(path: Path) -> str:
    return path.relative_to("Data").as_posix()


def _identifiers(folder: Path) -> tuple[str, str]:
    digest = hashlib.sha256()
    for part in (MODEL, WEIGHTS):
        digest.update(hashlib.sha256((folder / part).read_bytes() if (folder / part).exists() else b"").digest())
    made = [
        str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {digest.hexdigest()}")).upper() for name in ("model", "weights")
    ]
    return made[0], made[1]


def check(path: Path) -> None:
    """Whether a package is whole; where we wrote it, whether it is as we wrote it.

    Raises:
        UserError: it is missing, not a package, or damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such package; a .mlpackage is a folder; export the variant again")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        root = str(manifest["rootModelIdentifier"])
        ours = uuid.UUID(root).version == 5
        listed = manifest["itemInfoEntries"][root]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a Core ML package ({MANIFEST}: {error}); export the variant again") from error
    if listed != _inside(MODEL) or not (path / MODEL).is_file():
        raise UserError(f"{path}: not a Core ML package (no {MODEL}); export the variant again")
    if ours and manifest != _manifest(path):
        raise UserError(f"{path}: damaged: its files are not those that were written; fetch or export it again")
