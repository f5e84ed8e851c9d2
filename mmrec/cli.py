"""The command line: one command a stage, each of which calls one function and prints its result.

Results go to standard output (with --json one document and nothing else), progress and warnings to
standard error. Exit status: 0 done, 1 the work itself failed, 2 the caller's fault in one line,
130 interrupted. Anything else that escapes is a defect and shows its traceback.

Commands import what they call when they run, so that `mmrec --help` needs neither torch nor polars.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from data_prep.errors import DataError
from mmrec.arguments import (
    AtOption,
    AttributeOption,
    CatalogueArgument,
    CataloguesOption,
    ConfigArgument,
    ContextOption,
    CountOption,
    DataOption,
    HalfLifeOption,
    JsonOption,
    OverridesArgument,
    OverridesInUseArgument,
    PreparedArgument,
    PreparedOption,
    RunArgument,
    SourceOption,
    UnmetOption,
    exactly_one,
    one_or_several,
    split_names,
)
from mmrec.errors import MmrecError, UserError
from mmrec.pretraining.command import pretrain
from mmrec.request import read_pairs, read_time, typed_attributes
from mmrec.retrieval.classify_command import classify
from mmrec.retrieval.predict_command import predict
from mmrec.terminal import (
    machine_fault,
    metric_rows,
    perturbation_rows,
    plain,
    print_description,
    print_fault,
    print_forecast,
    print_json,
    print_rates,
    print_table,
    progress_bar,
    seed_rows,
)

app = typer.Typer(
    name="mmrec",
    help="Multimodal recommender: from a folder of media and a log to recommendations, "
    "exports, and scores for items nobody has met.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
weights_app = typer.Typer(
    help="List or install pretrained weights.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(weights_app, name="weights")

_INTERRUPTED = 130
# typer exports no name for the root of its usage errors, and newer releases carry their own click.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class Which(StrEnum):
    """Targets to evaluate on."""

    test = "test"
    validation = "validation"


class By(StrEnum):
    """What `score --top` keeps K rows of."""

    user = "user"
    item = "item"


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("mmrec"))
        raise typer.Exit


@app.callback()
def _configure(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")] = False,
) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    for name in ("data_prep", "encoders", "fusion", "mmrec"):
        logging.getLogger(name).setLevel(level)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, run, exports and report.")] = Path(
        "demo"
    ),
) -> None:
    """Simulate a catalogue, prepare, train, evaluate, export, score new items; write a report."""
    from mmrec.demo import run_demo

    typer.echo(run_demo(out))


@app.command()
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


@app.command()
def inspect(data: PreparedArgument, as_json: JsonOption = False) -> None:
    """Describe a prepared folder: density, coverage of each modality, quarantine, splits."""
    from data_prep.inspect import inspect as look_into
    from data_prep.inspect import render

    facts = look_into(data)
    if as_json:
        print_json(facts)
    else:
        typer.echo(render(facts))


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


app.command()(pretrain)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    overrides: OverridesInUseArgument = None,
    formats: Annotated[
        str, typer.Option("--format", help="One or several of parquet,faiss,npy.")
    ] = "parquet",
    bundle: Annotated[bool, typer.Option("--bundle", help="Add a self-contained bundle.")] = False,
    data: DataOption = None,
) -> None:
    """Write item and user embeddings that any retrieval system can search."""
    from mmrec.retrieval.export import export_run

    export_run(
        run,
        out,
        formats=tuple(split_names(formats)),
        bundle=bundle,
        data=data,
        overrides=overrides or (),
    )
    typer.echo(f"exported {run} to {out}")


@app.command()
def score(
    run: RunArgument,
    items: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help="Table of items (csv, jsonl, parquet)."),
    ],
    source: SourceOption,
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    overrides: OverridesInUseArgument = None,
    users: Annotated[str, typer.Option(help="User ids, comma-separated, or all.")] = "all",
    top: Annotated[int | None, typer.Option(min=1, help="Rows to keep of each user.")] = None,
    by: Annotated[By, typer.Option(help="What --top counts by.")] = By.user,
    data: DataOption = None,
) -> None:
    """Score items nobody has met, from their media alone."""
    from mmrec.retrieval.cold import score_file

    summary = score_file(
        run,
        items,
        source,
        out,
        users=None if users == "all" else split_names(users),
        top=top,
        by=by.value,
        data=data,
        overrides=overrides or (),
    )
    typer.echo(summary)


@app.command()
def recommend(
    run: RunArgument,
    overrides: OverridesInUseArgument = None,
    user: Annotated[str | None, typer.Option(help="Id of a known user.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, comma-separated.")
    ] = None,
    taste: Annotated[
        str | None, typer.Option(help="What the user says he likes, in his words.")
    ] = None,
    attribute: AttributeOption = None,
    at: AtOption = None,
    context: ContextOption = None,
    k: CountOption = 10,
    half_life: HalfLifeOption = None,
    unmet: UnmetOption = False,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend the next items to a user: known, or given by what he met, likes and is."""
    whom = {"--user": user, "--history": history, "--attribute": attribute}
    asked_by_request = taste is not None or at is not None or context is not None
    if user is not None or not (history or attribute or asked_by_request):
        exactly_one(whom)  # whoever is known brings a history and attributes of his own
    from mmrec.recommender import Recommender

    time, where = read_time(at), read_pairs(context, "--context")
    recommender = Recommender.load(run, data=data, overrides=overrides or ())
    attributes = None
    if attribute is not None:
        users = recommender.retriever.catalogue.users
        attributes = typed_attributes(read_pairs(attribute, "--attribute"), users)
    items = None if history is None else split_names(history)
    found = recommender.recommend(
        user_id=user,
        history=items,
        taste=taste,
        attributes=attributes,
        time=time,
        context=where,
        k=k,
        half_life_hours=half_life,
        unmet=unmet,
    )
    query = {"user_id": user, "history": items, "taste": taste, "attributes": attributes}
    _print_found({**query, "time": time, "context": where or None}, found, as_json)


app.command()(predict)
app.command()(classify)


@app.command()
def similar(
    run: RunArgument,
    item: Annotated[str | None, typer.Option(help="Id of a known item.")] = None,
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A picture file.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A text.")] = None,
    audio: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A sound file.")
    ] = None,
    at: AtOption = None,
    k: CountOption = 10,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items most like an item, a picture, a text or a sound."""
    query = {"item": item, "image": image, "text": text, "audio": audio}
    exactly_one({f"--{name}": value for name, value in query.items()})
    from mmrec.recommender import Recommender

    time = read_time(at)
    recommender = Recommender.load(run, data=data)
    found = recommender.similar(item_id=item, image=image, text=text, audio=audio, k=k, time=time)
    _print_found({name: value for name, value in query.items() if value}, found, as_json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: words after `mmrec`; None takes them from the process.
    """
    try:
        status = app(
            None if arguments is None else list(arguments), standalone_mode=False, prog_name="mmrec"
        )
        sys.stdout.flush()
        if status == _INTERRUPTED:  # typer turns Ctrl-C into a status
            raise KeyboardInterrupt
        return int(status or 0)
    except _UsageError as error:
        return _fail(_usage_line(error), 2)
    except (UserError, DataError) as error:
        return _fail(str(error), 2)
    except MmrecError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(
            "interrupted; `mmrec train … --resume` goes on, as does the same `mmrec tune …`",
            _INTERRUPTED,
        )
    except BrokenPipeError:
        # The reader (head, less) has gone; keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        line = machine_fault(error)
        if line is None:
            raise
        return _fail(line, 2)


def _fail(message: str, status: int) -> int:
    print_fault(message)
    return status


def _usage_line(error: Exception) -> str:
    """What is wrong with the words of a command, and where its help is."""
    message: str = getattr(error, "format_message", error.__str__)()
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    if type(error).__name__ == "NoArgsIsHelpError":
        names = ", ".join(getattr(context.command, "commands", {}))
        message = f"name a command: {names}."
    return f"{message.rstrip('.')}. See: {context.command_path} --help"


def _print_found(query: Mapping[str, Any], found: Sequence[Any], as_json: bool) -> None:
    """Items found, best first, as a table or as {query, items}."""
    items = [plain(entry) for entry in found]
    if as_json:
        print_json({"query": {key: v for key, v in query.items() if v is not None}, "items": items})
    else:
        print_table(items)


if __name__ == "__main__":
    sys.exit(main())
