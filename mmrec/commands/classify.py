"""`mmrec classify`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrec.arguments import (
    DataOption,
    JsonOption,
    NewOption,
    NewSourceOption,
    RunArgument,
    split_names,
)
from mmrec.retrieval.items_asked import check_items_asked, items_asked_for, told_rows
from mmrec.terminal import print_json, print_table


def classify(
    run: RunArgument,
    labels: Annotated[str, typer.Option(help="Names of the classes, comma-separated.")],
    template: Annotated[
        list[str] | None,
        typer.Option(help="A text with {} for the name; of several the mean counts."),
    ] = None,
    items: Annotated[str | None, typer.Option(help="Item ids, comma-separated.")] = None,
    new: NewOption = None,
    source: NewSourceOption = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Classes of each item.")] = 3,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell items apart by names of classes that no item was labelled with: zero-shot."""
    check_items_asked(items, new, source)
    from mmrec.recommender import Recommender

    recommender = Recommender.load(run, data=data)
    names, templates = split_names(labels), template or ["{}"]
    asked = items_asked_for(recommender, items, new, source)
    found = recommender.classify(asked, names, templates=templates, k=k)
    if as_json:
        query = {"labels": names, "templates": templates, "k": k}
        print_json({"query": query, "items": found})
    else:
        print_table(told_rows(found))
