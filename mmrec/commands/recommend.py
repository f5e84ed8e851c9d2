"""`mmrec recommend` and `similar`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrec.arguments import (
    AtOption,
    AttributeOption,
    ContextOption,
    CountOption,
    DataOption,
    HalfLifeOption,
    JsonOption,
    OverridesInUseArgument,
    RunArgument,
    UnmetOption,
    exactly_one,
    split_names,
)
from mmrec.request import read_pairs, read_time, typed_attributes
from mmrec.terminal import plain, print_json, print_table


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
    ranked: Annotated[
        bool | None,
        typer.Option(
            "--ranked/--no-ranked",
            help="Order by the second stage, or by retrieval alone; unasked, by what was better.",
        ),
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Tell calibrated ones, or say why not.")
    ] = False,
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
        ranked=ranked,
        probabilities=probabilities,
    )
    query = {"user_id": user, "history": items, "taste": taste, "attributes": attributes}
    _print_found({**query, "time": time, "context": where or None}, found, as_json)


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


def _print_found(query: Mapping[str, Any], found: Sequence[Any], as_json: bool) -> None:
    """Items found, best first, as a table or as {query, items}."""
    items = [plain(entry) for entry in found]
    if as_json:
        print_json({"query": {key: v for key, v in query.items() if v is not None}, "items": items})
    else:
        print_table([_flat(entry) for entry in items])


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose columns are what the heads tell, too."""
    columns = {**entry, **entry.get("heads", {})}
    columns.pop("heads", None)
    return columns
