"""`mmrec demo`, `prepare` and `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import (
    CatalogueArgument,
    JsonOption,
    OverridesArgument,
    PreparedArgument,
    SourceOption,
)
from mmrec.terminal import print_json, progress_bar


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run, exports and report.")] = Path(
        "demo"
    ),
) -> None:
    """Simulate a catalogue, prepare, train, evaluate, export, score new items; write a report."""
    from mmrec.demo import run_demo

    typer.echo(run_demo(out))


def prepare(
    catalogue: CatalogueArgument,
    source: SourceOption,
    out: Annotated[Path, typer.Option(help="Prepared folder to write or to bring up to date.")],
    overrides: OverridesArgument = None,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that read media. Default: one a core.")
    ] = None,
    image_side: Annotated[
        int, typer.Option(min=16, help="Pixels of the short side above which images are reduced.")
    ] = 256,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the tables, write nothing.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Go on from the folder: redo what has changed alone.")
    ] = False,
) -> None:
    """Turn tables, media and a log into checked, sharded, split data."""
    from data_prep.prepare import prepare as prepare_folder

    with progress_bar() as report:
        summary = prepare_folder(
            catalogue,
            source,
            out,
            overrides=overrides or (),
            num_workers=num_workers,
            image_side=image_side,
            progress=report,
            dry_run=dry_run,
            update=update,
        )
    typer.echo(summary.line())


def inspect(data: PreparedArgument, as_json: JsonOption = False) -> None:
    """Describe a prepared folder: density, coverage of each modality, quarantine, splits."""
    from data_prep.inspect import inspect as look_into
    from data_prep.inspect import render

    facts = look_into(data)
    if as_json:
        print_json(facts)
    else:
        typer.echo(render(facts))
