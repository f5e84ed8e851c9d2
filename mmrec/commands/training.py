"""`mmrec describe`, `train` and `tune`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import (
    CataloguesOption,
    ConfigArgument,
    JsonOption,
    OverridesArgument,
    PreparedOption,
    one_or_several,
)
from mmrec.errors import UserError
from mmrec.terminal import (
    metric_rows,
    print_description,
    print_forecast,
    print_json,
    print_rates,
    print_table,
    progress_bar,
)


def describe(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    items: Annotated[int, typer.Option(min=2, help="Items in training.")] = 100_000,
    as_json: JsonOption = False,
) -> None:
    """Say how large the model of some settings is, and what it holds; nothing of it is allocated.

    No data are read: what the catalogue decides (attributes, ready-made vectors, a vocabulary) is
    not counted. `train --dry-run` tries a run with its data.
    """
    from mmrec.config import load_config

    settings = load_config(config, overrides or ())  # a typo is told before torch loads
    from mmrec.describe import describe as describe_model

    found = describe_model(settings, num_items=items)
    if as_json:
        print_json(asdict(found))
    else:
        print_description(found)


def train(
    config: ConfigArgument,
    data: CataloguesOption,
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    overrides: OverridesArgument = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run would cost, and write nothing.")
    ] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Try growing learning rates, and train nothing.")
    ] = False,
    with_summary: Annotated[
        bool, typer.Option("--summary/--no-summary", help="End with the table on validation.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train the encoders above the cut, the fusion and the user model together.

    Ends with a table on validation: before training, after it, popularity; and with the gap from
    targets of training to those of validation. RUN/summary.json keeps both.
    """
    from mmrec.config import load_config

    settings = load_config(config, overrides or ())  # a typo is told before torch loads
    folder = one_or_several(data)
    if (dry_run or find_lr) and (settings.catalogues or not isinstance(folder, Path)):
        raise UserError(
            "--dry-run and --find-lr try one catalogue: give one --data without a name, and "
            "settings without the section `catalogues`"
        )
    if dry_run:
        assert isinstance(folder, Path)
        from mmrec.training.dry_run import forecast

        found = forecast(settings, folder)
        if as_json:
            print_json(asdict(found))
        else:
            print_forecast(found)
        return
    if find_lr:
        assert isinstance(folder, Path)
        from mmrec.training.find_rate import find_rate, steepest

        points = find_rate(settings, folder)
        if as_json:
            print_json({"steepest": steepest(points), "points": [asdict(each) for each in points]})
        else:
            print_rates(points, steepest(points))
        return
    if as_json:
        raise UserError(
            "--json belongs to --dry-run and --find-lr here; a run writes RUN/metrics.jsonl"
        )
    from mmrec.training.distributed import is_main_process
    from mmrec.training.train import train as train_model

    if not is_main_process():  # one of several ranks speaks
        logging.getLogger("mmrec").setLevel(logging.WARNING)
    with progress_bar() as report:
        train_model(
            settings,
            folder,
            run,
            resume=resume,
            progress=lambda at: report(
                "steps", at.step, at.total_steps, note=f"epoch {at.epoch} loss {at.loss:.4f}"
            ),
        )
    from mmrec.training.files import catalogue_folder
    from mmrec.training.summary import gap_line, summarise

    if not is_main_process():
        return

    if isinstance(folder, Path):
        trained = {run: folder}
    else:
        trained = {catalogue_folder(run, name): each for name, each in folder.items()}
    for place, data_folder in trained.items():
        summary = summarise(place, data_folder) if with_summary else None
        if summary is not None:
            if len(trained) > 1:
                typer.echo(f"{place.name}:")
            print_table(metric_rows(summary))
            typer.echo(gap_line(summary))
        typer.echo(f"trained {place}; next: mmrec evaluate {place}")


def tune(
    config: ConfigArgument,
    data: PreparedOption,
    out: Annotated[Path, typer.Option(help="Folder of the search; the same command goes on.")],
    space: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="YAML of the settings to try.")
    ],
    overrides: OverridesArgument = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")
    ] = 20,
    hours: Annotated[
        float | None, typer.Option(min=0, help="Begin no trial later than this after the start.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Search settings on validation; write the best ones and a table of all that were tried."""
    from mmrec.config import load_config
    from mmrec.tuning.space import load_search
    from mmrec.tuning.study import import_optuna

    settings = load_config(config, overrides or ())  # typos are told before torch loads
    search = load_search(space, settings)
    import_optuna()
    from mmrec.tuning.tune import tune as search_settings

    with progress_bar() as report:
        outcome = search_settings(
            settings,
            search,
            data,
            out,
            num_trials=trials,
            hours=hours,
            progress=lambda number, at: report(
                "steps", at.step, at.total_steps, note=f"trial {number} epoch {at.epoch}"
            ),
        )
    if as_json:
        print_json(outcome)
    else:
        typer.echo(outcome.line())
