"""`mmrec weights list` and `install`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrec.arguments import JsonOption
from mmrec.terminal import print_json

weights_app = typer.Typer(
    help="List or install pretrained weights.", no_args_is_help=True, rich_markup_mode=None
)


@weights_app.command("list")
def weights_list(as_json: JsonOption = False) -> None:
    """List the weights that can be installed and those that are."""
    from mmrec.weights import list_weights, render_list

    known = list_weights()
    if as_json:
        print_json(known)
    else:
        typer.echo(render_list(known))


@weights_app.command("install")
def weights_install(names: Annotated[list[str], typer.Argument(metavar="NAME…")]) -> None:
    """Fetch weights, check their sha256 and convert them to safetensors."""
    from mmrec.weights import install

    for name in names:
        typer.echo(f"{name}: {install(name)}")
