"""`mmrec train-ranker`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrec.arguments import DataOption, JsonOption, RunArgument
from mmrec.terminal import print_json, progress_bar


def train_ranker(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="ranker.FIELD=VALUE", help="Settings to change."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last epoch of an interrupted one.")
    ] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a second stage: rank anew, with the user's history at hand, what retrieval found.

    Says on validation what it adds to retrieval alone; RUN/ranker/metrics.json keeps it. Where that
    is more than chance `recommend` uses it from now on.
    """
    from mmrec.ranking.settings import parse_ranker_config

    settings = parse_ranker_config(overrides or ())  # a typo is told before torch loads
    from mmrec.ranking.gain import outcome_lines
    from mmrec.ranking.train import train_ranker as train

    with progress_bar() as report:
        document = train(
            run,
            settings,
            data=data,
            resume=resume,
            progress=lambda done, total, note: report("steps", done, total, note=note),
        )
    if as_json:
        print_json(document)
        return
    for line in outcome_lines(document):
        typer.echo(line)
