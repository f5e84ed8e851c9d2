"""Arguments and options that several commands share; a path that must exist is checked first."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CatalogueArgument = Annotated[
    Path, typer.Argument(metavar="CATALOGUE.yaml", exists=True, dir_okay=False)
]
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", exists=True, dir_okay=False)]
PreparedArgument = Annotated[Path, typer.Argument(metavar="DATA", exists=True, file_okay=False)]
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
        exists=True,
        file_okay=False,
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
