"""`mmrec predict`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmrec.arguments import (
    AtOption,
    ContextOption,
    DataOption,
    JsonOption,
    NewOption,
    NewSourceOption,
    RunArgument,
    exactly_one,
    split_names,
)
from mmrec.errors import UserError
from mmrec.request import read_request
from mmrec.retrieval.items_asked import check_items_asked, items_asked_for, told_rows
from mmrec.terminal import print_json, print_table


def predict(
    run: RunArgument,
    items: Annotated[str | None, typer.Option(help="Item ids, comma-separated.")] = None,
    new: NewOption = None,
    source: NewSourceOption = None,
    user: Annotated[str | None, typer.Option(help="Id of a known user.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, comma-separated.")
    ] = None,
    at: AtOption = None,
    context: ContextOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Labels of each kind.")] = 5,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a user would do with items, by the model's heads; without one, items' labels."""
    check_items_asked(items, new, source)
    request = read_request(at, context)
    by_user = user is not None or history is not None
    if by_user:
        exactly_one({"--user": user, "--history": history})
    if by_user and new is not None:
        raise UserError(
            "--new is told labels, which no user has a part in: drop --user and --history, or name "
            "items of the catalogue with --items"
        )
    if not by_user and request.document() is not None:
        raise UserError(
            "--at and --context are of a user's request, and none is asked for: name one with "
            "--user or --history, or drop them"
        )
    from mmrec.recommender import Recommender

    recommender = Recommender.load(run, data=data)
    found: list[dict[str, Any]]
    if by_user:
        met = None if history is None else split_names(history)
        found = recommender.predict(
            split_names(items or ""),
            user,
            history=met,
            time=request.time,
            context=request.context,
        )
        query: dict[str, Any] = {
            "user_id": user,
            "history": met,
            **(request.document() or {}),
        }
    else:
        found = recommender.labels(items_asked_for(recommender, items, new, source), k=k)
        query = {"k": k}
    if as_json:
        print_json({"query": query, "items": found})
    else:
        print_table(found if by_user else told_rows(found))
