"""`mmrec serve`, the keys of its callers, what is added to it, and the log of its events."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import DataOption, JsonOption, NewSourceOption, RunArgument
from mmrec.serving.extra import require_extra
from mmrec.terminal import plain, print_json, progress_bar

keys_app = typer.Typer(help="API keys of the service.", no_args_is_help=True)
KeysFile = Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False)]


class LogName(StrEnum):
    """How shown lists are logged."""

    sure = "sure"
    later = "later"
    off = "off"


class RoleName(StrEnum):
    """What a key may do."""

    read = "read"
    write = "write"
    admin = "admin"


def serve(
    run: RunArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    database: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of events and added items; RUN/service.sqlite unless "
                     "given. PostgreSQL: postgresql+psycopg://USER@HOST/NAME."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, envvar="MMREC_KEYS", help="File of API keys."),
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of runs or bundles that "
                     "/v1/model may name."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more get 429.")
    ] = 64,
    max_wait: Annotated[
        float, typer.Option(min=0.01, help="Seconds one may wait for the model; else it gets 429.")
    ] = 2.0,
    log_lists: Annotated[
        LogName,
        typer.Option(help="The log of lists shown to users: sure (on disk before the answer), "
                     "later (behind it), or off."),
    ] = LogName.sure,
    log_lists_days: Annotated[
        float, typer.Option(min=0, help="Days after which a shown list is forgotten.")
    ] = 90.0,
    explore: Annotated[
        float,
        typer.Option(min=0, max=1, help="Probability with which a place of a user's list shows "
                     "one of the next --explore-next candidates."),
    ] = 0.0,
    explore_next: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    tls_certificate: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False)] = None,
    data: DataOption = None,
) -> None:  # fmt: skip
    """Answer requests over HTTP: lists, search, scores of new items, events."""
    require_extra("mmrec serve")
    from mmrec.serving.run import run_service
    from mmrec.serving.settings import ServiceSettings, default_database

    settings = ServiceSettings(
        path=run,
        data=data,
        models=models,
        database=database or default_database(run),
        keys=keys,
        host=host,
        port=port,
        workers=workers,
        max_waiting=max_waiting,
        max_wait_s=max_wait,
        log_lists=log_lists.value,
        log_lists_days=log_lists_days,
        explore=explore,
        explore_next=explore_next,
    )
    run_service(settings, certificate=tls_certificate, private_key=tls_key)


def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the running service.")],
    items: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Table of new items (csv, jsonl, "
                           "parquet) with the catalogue's columns."),
    ],
    source: NewSourceOption = None,
    key: Annotated[
        str | None,
        typer.Option(envvar="MMREC_KEY", help="API key of role write, where the service has keys."),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Add new items to a running service; they are listed from its next answer on."""
    require_extra("mmrec add")
    from mmrec.serving.add_items import add_items
    from mmrec.serving.client import Client

    with Client(url, key=key, tries=10) as client, progress_bar() as report:
        done = add_items(client, items, source or items.parent, progress=report)
    if as_json:
        print_json(plain(done))
    else:
        typer.echo(done.line())
    if done.refused:
        raise typer.Exit(1)


def events(
    database: Annotated[str, typer.Argument(metavar="DATABASE", help="URL, as serve took it.")],
    out: Annotated[Path, typer.Option(help="Log to write: csv, jsonl or parquet.")],
    catalogue: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Catalogue file whose columns it gets."),
    ] = None,
    lists: Annotated[
        bool,
        typer.Option(
            "--lists",
            help="Write what lists showed as well, as events of type 'shown' "
            "with position, propensity and request_id.",
        ),
    ] = False,
) -> None:
    """Write the events of a service as a log that prepare takes."""
    require_extra("mmrec events")
    from mmrec.serving.event_log import write_log

    typer.echo(write_log(database, out, catalogue, lists=lists))


@keys_app.command("add")
def add_key(
    file: KeysFile,
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = RoleName.read,
    days: Annotated[float | None, typer.Option(min=0, help="Until it expires.")] = None,
    per_minute: Annotated[int, typer.Option(min=1, help="Requests.")] = 600,
) -> None:
    """Make a key, print it once, and keep its hash."""
    require_extra("mmrec keys")
    from mmrec.serving.auth import add_key as add

    typer.echo(add(file, name, role.value, days=days, per_minute=per_minute))


@keys_app.command("remove")
def remove_key(file: KeysFile, name: Annotated[str, typer.Option(help="Whose key it is.")]) -> None:
    """Take a key out of the file; a running service reads it when it starts."""
    require_extra("mmrec keys")
    from mmrec.serving.auth import remove_key as remove

    remove(file, name)
    typer.echo(f"removed {name}")
