"""`mdcompress weights`: the backbones of the standard LPIPS nets."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from compress.errors import UserError

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON, for scripts.")]
Download = Annotated[bool, Parameter(name="--download", negative="")]


def weights_list(*, as_json: Json = False) -> int:
    """List the LPIPS nets, where their weights are, and whether they are the pinned ones.

    Parameters
    ----------
    as_json
        Print JSON, for scripts.
    """
    _show(None, as_json=as_json)
    return 0


def weights_add(net: str, *, file: Path | None = None, download: Download = False) -> int:
    """Add a backbone, from a file or by download; only the pinned file is taken.

    Parameters
    ----------
    net
        alex, vgg or squeeze.
    file
        torchvision's file, e.g. squeezenet1_1-b8a52dc0.pth.
    download
        Fetch it from download.pytorch.org.
    """
    from compress import drawing
    from compress.runs import Event
    from eval import weights

    if (file is None) != download:
        raise UserError(
            f"say where the weights of {net} come from: --file FILE (torchvision's own file), or --download to fetch "
            "them from download.pytorch.org"
        )
    if file is not None:
        path = weights.add(net, file)
    else:
        with drawing.Drawer(drawing.console(stderr=True)) as drawer:
            path = weights.download(
                net, progress=lambda done, whole: drawer(Event(kind="progress", name=net, done=done, total=whole))
            )
    drawing.console().print(f"{net}: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def weights_verify(net: str | None = None, *, as_json: Json = False) -> int:
    """Read the weights again and check their digests; exit code 1 where one is wrong, or missing though named.

    Parameters
    ----------
    net
        One net only.
    as_json
        Print JSON, for scripts.
    """
    found = _show(net, as_json=as_json)
    bad = ("wrong", "missing") if net else ("wrong",)
    return 1 if any(state in bad for state in found) else 0


def _show(net: str | None, *, as_json: bool) -> list[str]:
    """Print the state of one net or of all; returns the states."""
    from compress import drawing
    from eval import weights
    from eval.metrics import lpips

    found = [weights.status(name) for name in ([net] if net else lpips.NETS)]
    if as_json:
        drawing.print_json([asdict(one) for one in found])
    else:
        rows = [(one.net, one.state, one.text, one.path or "") for one in found]
        drawing.console().print(drawing.table(("net", "", "", "file"), rows))
    return [one.state for one in found]
