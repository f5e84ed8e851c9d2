"""`mmrec evaluate`, `stability` and `compare`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import (
    DataOption,
    JsonOption,
    OverridesInUseArgument,
    RunArgument,
)
from mmrec.terminal import (
    metric_rows,
    perturbation_rows,
    plain,
    print_json,
    print_table,
    progress_bar,
    seed_rows,
)


class Which(StrEnum):
    """Targets to evaluate on."""

    test = "test"
    validation = "validation"


def evaluate(
    run: RunArgument,
    overrides: OverridesInUseArgument = None,
    split: Annotated[Which, typer.Option(help="Which targets.")] = Which.test,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank every target among the whole catalogue, beside the baselines; write a report."""
    from mmrec.evaluation.command import evaluate_run
    from mmrec.evaluation.heads import heads_lines
    from mmrec.evaluation.item_labels import labels_lines

    with progress_bar() as report:
        metrics = evaluate_run(
            run,
            split="validation" if split is Which.validation else "test",
            data=data,
            overrides=overrides or (),
            progress=report,
        )
    if as_json:
        print_json(metrics)
    else:
        print_table(metric_rows(metrics))
        heads, labels = metrics.get("heads", {}), metrics.get("labels", {})
        for line in (*heads_lines(heads), *labels_lines(labels)):
            print(line)
        if "ranker" in metrics:
            from mmrec.ranking.gain import gain_lines

            ranker = metrics["ranker"]
            for line in gain_lines(ranker["slices"], ranker["candidates"]):
                print(line)


def stability(
    run: RunArgument,
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN…]",
            exists=True,
            file_okay=False,
            help="Runs that differ in training.seed alone.",
        ),
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Test users asked.")] = 1000,
    items: Annotated[int, typer.Option(min=1, help="Items whose media are changed.")] = 1000,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the users, the items and their changes.")
    ] = 0,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare lists after typos, JPEG again and noise, and those of other seeds."""
    from mmrec.evaluation.stability_command import measure_stability

    with progress_bar() as report:
        found = plain(
            measure_stability(
                run,
                others or (),
                data=data,
                num_users=users,
                num_items=items,
                seed=seed,
                progress=report,
            )
        )
    if as_json:
        print_json(found)
        return
    print_table(perturbation_rows(found))
    print_table(seed_rows(found))
    typer.echo(
        f"{found['num_users']:,} users; {found['num_items']:,} of {found['num_candidates']:,} "
        f"candidates changed; next: mmrec evaluate {run} puts this into its report"
    )


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Evaluated runs; several seeds a side: A0 A1 vs B0 B1"),
    ],
    split: Annotated[Which, typer.Option(help="Which targets.")] = Which.test,
    item_events_below: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Also on items of fewer and of as many training events."
        ),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare evaluated runs user by user: the first with each of the others."""
    from mmrec.evaluation.compare import compare_runs
    from mmrec.evaluation.compare_tables import printed
    from mmrec.evaluation.evaluated import sides_of

    found = compare_runs(
        sides_of(runs),
        which="validation" if split is Which.validation else "test",
        item_events_below=item_events_below,
        data=data,
    )
    if as_json:
        print_json(found.document())
        return
    for block in printed(found):
        if isinstance(block, str):
            typer.echo(block)
        else:
            print_table(block)
