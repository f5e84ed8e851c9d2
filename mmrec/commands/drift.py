"""`mmrec drift`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import DataOption, JsonOption, PreparedArgument, prepared
from mmrec.terminal import plain, print_json, print_table, progress_bar


def drift(
    data: PreparedArgument,
    against: Annotated[
        Path,
        typer.Option(
            metavar="RUN|DATA", parser=prepared, help="Finished run, or an earlier prepared folder."
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.yaml",
            exists=True,
            dir_okay=False,
            help="Whose encoders read texts and media, where --against is no run.",
        ),
    ] = None,
    earlier_data: DataOption = None,
    items: Annotated[int, typer.Option(min=20, help="Most items looked at on each side.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the items, folds and divisions.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Say whether a catalogue is far from the one that a run was trained on, and in what."""
    from mmrec.config import load_config

    settings = None if config is None else load_config(config)  # a typo is told before torch loads
    from mmrec.drift.compare import compare

    with progress_bar() as report:
        found = compare(
            data,
            against,
            config=settings,
            earlier_data=earlier_data,
            max_items=items,
            seed=seed,
            progress=report,
        )
    if as_json:
        print_json(plain(found.document()))
        return
    print_table([line.row() for line in found.lines])
    for line in found.summary():
        typer.echo(line)
