"""`mdcompress zoo bundle`: a whole text-to-image model into the zoo, judged end to end."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from compress.bundle_gates import BundleDemands
    from compress.generation import Leaf
    from compress.zoo_bundle import Bundled

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]
Replace = Annotated[bool, Parameter(negative="")]


def zoo_bundle(
    name: str,
    *,
    zoo: Path,
    model: str = "md-tiny",
    text_encoder: str | None = None,
    unet: str | None = None,
    decoder: str | None = None,
    format: str | None = None,  # noqa: A002 - the flag's name
    reference: str | None = None,
    gates: Path | None = None,
    prompts: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    solver: Literal["dpm_solver", "ddim"] | None = None,
    seed: int | None = None,
    pixels: int | None = None,
    seconds: bool = True,
    replace: Replace = False,
    as_json: Json = False,
) -> int:
    """Put a text encoder, a UNet and a decoder into a zoo as one entry that draws, past gates on its pictures.

    The entry is a folder for `generate --model`. Its pictures are compared with the float model's of the same prompts
    and seeds; if a gate fails, the zoo is as it was and the command ends with 1.

    Parameters
    ----------
    name
        The entry, e.g. md-tiny/w8a8.
    zoo
        The zoo's folder; made if it does not exist.
    model
        A preset, or a folder with tokenizer.json, scheduler.json, latents.json and maybe the parts.
    text_encoder
        Another text encoder: a component's zoo entry, a run, a variant's folder, an exported file, a preset.
    unet
        Another UNet, likewise.
    decoder
        Another decoder, likewise.
    format
        Of all three: onnx, ort, litert, openvino, executorch or torch; the first that all parts have where left out.
    reference
        The float model to compare with, a preset or a folder of variants; else the model itself.
    gates
        A gates file for bundles (docs/zoo.md), e.g. another bundle's recipe.yaml; without one LPIPS, PSNR and size.
    prompts
        A text file with one prompt a line, or 'defaults'.
    steps
        Calls of the UNet; the entry keeps them, with guidance, solver and pixels, as its usual way to draw.
    guidance
        How strongly the words count; 1 is not at all beyond the UNet's own.
    solver
        dpm_solver or ddim.
    seed
        Of the first prompt; each further one has the next.
    pixels
        Height and width.
    seconds
        Whether the card says how long a picture takes here; without, the same parts give the same bytes.
    replace
        Replace an entry of the same name and other contents.
    as_json
        Print the verdicts as JSON.
    """
    from compress import drawing, generation, zoo_bundle
    from compress.bundle_contest import Asked
    from eval import gates as records

    demands = _demands(gates, prompts)
    given: dict[Leaf, str | None] = {"text_encoder": text_encoder, "unet": unet, "decoder": decoder}
    asked = Asked(
        model=model,
        given=given,
        reference=reference,
        flags={"steps": steps, "guidance": guidance, "solver": solver, "seed": seed, "pixels": pixels},
        format=format,
        threads=generation.threads_here(),
    )
    with drawing.Drawer(drawing.console(stderr=True)) as drawer:
        done = zoo_bundle.bundle(name, asked, zoo, demands, drawer, seconds=seconds, replace=replace)
    if as_json:
        drawing.print_json([records.to_json(verdict) for verdict in done.judged.verdicts])
    else:
        _show(done, name, zoo)
    return 0 if done.place is not None else 1


def _demands(gates: Path | None, prompts: str | None) -> "BundleDemands":
    from dataclasses import replace

    from compress import bundle_gates

    demands = bundle_gates.default_demands() if gates is None else bundle_gates.read_bundle_demands(gates)
    return demands if prompts is None else replace(demands, prompts=bundle_gates.read_prompts(prompts))


def _show(done: "Bundled", name: str, zoo: Path) -> None:
    from compress import drawing

    console, errors = drawing.console(), drawing.console(stderr=True)
    for note in done.notes:
        errors.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    drawing.print_verdicts(console, done.judged.verdicts)
    ours, theirs = done.judged.candidate.seconds, done.judged.reference.seconds
    where = f"{done.place}; draw with it: mdcompress generate PROMPT --model {done.place} --out PICTURE.png"
    for text in (
        f"{ours:.2f} s a picture, the reference {theirs:.2f} s (medians of wall time)",
        where if done.place is not None else f"{name} does not enter the zoo; {zoo} is as it was",
    ):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
