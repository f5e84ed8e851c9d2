"""`mmrec predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrec.arguments import DataOption, JsonOption, RunArgument, exactly_one, split_names
from mmrec.errors import UserError
from mmrec.terminal import print_json, print_table


def predict(
    run: RunArgument,
    items: Annotated[str | None, typer.Option(help="Item ids, comma-separated.")] = None,
    new: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Table of new items, for their labels."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder that the table's paths start from."
        ),
    ] = None,
    user: Annotated[str | None, typer.Option(help="Id of a known user.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, comma-separated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Labels of each kind.")] = 5,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a user would do with items, by the model's heads; without one, items' labels."""
    exactly_one({"--items": items, "--new": new})
    by_user = user is not None or history is not None
    if by_user:
        exactly_one({"--user": user, "--history": history})
    if by_user and new is not None:
        raise UserError(
            "--new is told labels, which no user has a part in: drop --user and --history, or name "
            "items of the catalogue with --items"
        )
    if new is not None and source is None:
        raise UserError("--new names a table; give --source, the folder that its paths start from")
    from mmrec.recommender import Recommender

    recommender = Recommender.load(run, data=data)
    found: list[dict[str, Any]]
    if by_user:
        met = None if history is None else split_names(history)
        found = recommender.predict(split_names(items or ""), user, history=met)
        query: dict[str, Any] = {"user_id": user, "history": met}
    else:
        asked: Any = split_names(items or "")
        if new is not None and source is not None:
            asked = recommender.new_items(new, source)
        found = recommender.labels(asked, k=k)
        query = {"k": k}
    if as_json:
        print_json({"query": query, "items": found})
    else:
        print_table(found if by_user else label_rows(found))


def label_rows(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """A row an item, each set of labels in one cell, the likeliest first."""
    return [
        {
            name: value
            if isinstance(value, str)
            else ", ".join(f"{label} {chance:.2f}" for label, chance in value.items())
            for name, value in each.items()
        }
        for each in found
    ]
