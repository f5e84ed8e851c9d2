"""Arguments and options that several commands share; a path that must exist is checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _prepared(location: str) -> Path:
    """A prepared folder that is there, or the local mirror of one on a remote path."""
    from data_prep.remote import is_url, mirror

    if is_url(location):
        return mirror(location)
    path = Path(location)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise typer.BadParameter(f"Directory '{location}' {what}.")
    return path


CatalogueArgument = Annotated[
    Path, typer.Argument(metavar="CATALOGUE.yaml", exists=True, dir_okay=False)
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", exists=True, dir_okay=False)]
PreparedArgument = Annotated[Path, typer.Argument(metavar="DATA", parser=_prepared)]
PreparedOption = Annotated[
    Path,
    typer.Option("--data", metavar="DATA", parser=_prepared, help="Prepared folder, or its URL."),
]
SourceOption = Annotated[
    Path,
    typer.Option(exists=True, file_okay=False, help="Folder that the table's paths start from."),
]
RunArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN", exists=True, file_okay=False, help="Folder of a run or bundle."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DATA",
        parser=_prepared,
        help="The prepared folder, where it has moved since training.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
CountOption = Annotated[int, typer.Option("-k", min=1, help="Number of items.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.FIELD=VALUE", help="Settings to change."),
]
OverridesInUseArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.FIELD=VALUE", help="Settings to change: evaluation.popularity_share."
    ),
]
