"""The commands about components: what comes with mdcompress, what each costs, and folders of other libraries."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from compress.errors import UserError
from compress.given import Encoder, Module

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]
Layout = Annotated[Literal["diffusers", "transformers", "mdcompress"], Parameter(name="--as")]
Companion = Annotated[Path | None, Parameter(name="--with")]


def models_list(*, as_json: Json = False) -> int:
    """List the components that come with mdcompress, what each costs, and whether it is trained.

    Parameters
    ----------
    as_json
        Print {name: {"parameters": ..., "macs": ..., "weights": ...}} as JSON.
    """
    from compress import drawing, model_tables

    found = model_tables.listed()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        drawing.console().print(model_tables.list_table(found))
    return 0


def models_show(
    name: str | None = None,
    *,
    pixels: int = 256,
    layers: bool = False,
    module: Module = None,
    encoder: Encoder = None,
    as_json: Json = False,
) -> int:
    """Show what a component costs: parameters, MACs, activations, bytes at each precision, per block or layer.

    Parameters
    ----------
    name
        A component, e.g. md-tiny/decoder, or a folder: a variant, or a component of a diffusers or transformers folder.
    pixels
        Side of the image that MACs and activations are counted for.
    layers
        One row per layer instead of one per block.
    module
        Code of your own instead of a component; also shows what pruning may cut in it, and what not and why.
    encoder
        What makes its inputs, where the function gives no example.
    as_json
        Print {"parameters": ..., "macs": ..., "blocks": [...], "layers": [...], ...} as JSON.
    """
    from compress.headers import look

    if name:
        look(Path(name))
    from compress import drawing, model_tables

    if (name is None) == (module is None):
        raise UserError("name a component (see: mdcompress models list), or give --module package.module:function")
    shown = model_tables.shown(name, pixels) if name else model_tables.shown_code(module or "", encoder, pixels)
    if as_json:
        print(json.dumps(shown, indent=1))
        return 0
    console = drawing.console()
    console.print(model_tables.part_table(shown["layers" if layers else "blocks"]))
    for table in model_tables.cut_tables(shown):
        console.print(table)
    console.print(model_tables.totals(shown), highlight=False)
    return 0


def models_convert(
    folder: Path,
    *,
    out: Path,
    layout: Layout,
    companion: Companion = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
) -> int:
    """Write a variant or a checkpoint in another layout: diffusers, transformers, or our own.

    Parameters
    ----------
    folder
        A variant folder, or a component of a diffusers or transformers folder, e.g. sd15/vae/decoder.
    out
        A new folder for the result.
    layout
        Whose layout to write.
    companion
        The folder of the other half of an autoencoder, which diffusers keeps in one folder with the first.
    dtype
        Type of the written weights; by default that of the folder. Ours are always float32.
    """
    from compress.headers import look

    for one in filter(None, (folder, companion)):
        look(one)
    from compress.conversion import convert

    print(convert(folder, out, layout=layout, companion=companion, dtype=dtype))
    return 0
