"""`mmrec path`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mmrec.arguments import (
    AtOption,
    AttributeOption,
    ContextOption,
    DataOption,
    JsonOption,
    RunArgument,
    exactly_one,
    split_names,
)
from mmrec.request import read_pairs, read_request, typed_attributes
from mmrec.terminal import plain, print_json, print_table


def path(
    run: RunArgument,
    user: Annotated[str | None, typer.Option(help="Id of a known user.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, comma-separated.")
    ] = None,
    attribute: AttributeOption = None,
    at: AtOption = None,
    context: ContextOption = None,
    length: Annotated[int, typer.Option(min=1, help="Items of a path.")] = 5,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of paths, likeliest first.")] = 1,
    beam: Annotated[
        int, typer.Option(min=1, help="Paths that go on after each item, -k at least.")
    ] = 32,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List items to meet one after the other, each behind those before it, none twice."""
    if user is not None or not (history or attribute or at is not None or context is not None):
        exactly_one({"--user": user, "--history": history, "--attribute": attribute})
    request = read_request(at, context)
    from mmrec.recommender import Recommender

    recommender = Recommender.load(run, data=data)
    attributes = None
    if attribute is not None:
        users = recommender.retriever.catalogue.users
        attributes = typed_attributes(read_pairs(attribute, "--attribute"), users)
    met = None if history is None else split_names(history)
    found = recommender.path(
        user,
        history=met,
        attributes=attributes,
        time=request.time,
        context=request.context,
        length=length,
        k=k,
        beam=beam,
    )
    paths: list[dict[str, Any]] = [plain(each) for each in found]
    if not as_json:
        print_table(paths)
        return
    told = {"user_id": user, "history": met, "attributes": attributes, "time": request.time}
    query = {**told, "context": dict(request.context) or None, "length": length, "beam": beam}
    print_json({"query": {k: v for k, v in query.items() if v is not None}, "paths": paths})
