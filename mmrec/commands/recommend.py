"""`mmrec recommend` and `similar`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmrec.arguments import (
    AtLeastOption,
    AtOption,
    AttributeOption,
    ContextOption,
    CountOption,
    DataOption,
    DiversifyByOption,
    DiversityOption,
    HalfLifeOption,
    JsonOption,
    MaxPerOption,
    MixOption,
    NoveltyOption,
    OverridesInUseArgument,
    PreferOption,
    RunArgument,
    ShowSimilarOption,
    UnmetOption,
    WhereOption,
    WithoutOption,
    exactly_one,
    split_names,
)
from mmrec.request import read_pairs, read_time, read_wishes, typed_attributes
from mmrec.terminal import plain, print_json, print_table

_ASKED_FOR = ("probability", "similar", "why", "found_by")
"""What an item of a list has where it is asked for alone."""


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
    query: Annotated[str | None, typer.Option(help="What the user looks for now.")] = None,
    mix: MixOption = 0.5,
    attribute: AttributeOption = None,
    at: AtOption = None,
    context: ContextOption = None,
    k: CountOption = 10,
    half_life: HalfLifeOption = None,
    unmet: UnmetOption = False,
    where: WhereOption = None,
    without: WithoutOption = None,
    prefer: PreferOption = None,
    novelty: NoveltyOption = 0.0,
    at_least: AtLeastOption = None,
    diversity: DiversityOption = 0.0,
    diversify_by: DiversifyByOption = "mmr",
    max_per: MaxPerOption = None,
    probability: Annotated[
        bool, typer.Option("--probability", help="How likely each is the next of all candidates.")
    ] = False,
    show_similar: ShowSimilarOption = 0,
    why: Annotated[
        str | None, typer.Option(metavar="en|zh", help="Say why each item is listed.")
    ] = None,
    ranked: Annotated[
        bool | None,
        typer.Option(
            "--ranked/--no-ranked",
            help="Order by the second stage, or by retrieval alone; unasked, by what was better.",
        ),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrated", help="Tell the second stage's calibrated probabilities, or why not."
        ),
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

    time, said = read_time(at), read_pairs(context, "--context")
    wishes = read_wishes(
        where=where,
        without=split_names(without or ""),
        prefer=prefer,
        novelty=novelty,
        at_least=at_least,
        half_life_hours=half_life,
        unmet=unmet,
        diversity=diversity,
        diversify_by=diversify_by,
        max_per=max_per,
        probabilities=probability,
        num_similar=show_similar,
        why=why,
    )
    recommender = Recommender.load(run, data=data, overrides=overrides or ())
    attributes = None
    if attribute is not None:
        users = recommender.retriever.catalogue.users
        attributes = typed_attributes(read_pairs(attribute, "--attribute"), users)
    items = None if history is None else split_names(history)
    search: dict[str, Any] = {} if query is None else {"query": query, "mix": mix}
    found = recommender.recommend(
        user_id=user,
        history=items,
        taste=taste,
        attributes=attributes,
        time=time,
        context=said,
        **search,
        k=k,
        wishes=wishes,
        ranked=ranked,
        calibrated=calibrated,
    )
    told = {"user_id": user, "history": items, "taste": taste, "attributes": attributes}
    print_found({**told, "query": query, "time": time, "context": said or None}, found, as_json)


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
    by: Annotated[
        str | None,
        typer.Option(
            metavar="MODALITY", help="What looks (image), sounds (audio) or reads (text) alike."
        ),
    ] = None,
    at: AtOption = None,
    k: CountOption = 10,
    half_life: HalfLifeOption = None,
    where: WhereOption = None,
    without: WithoutOption = None,
    prefer: PreferOption = None,
    novelty: NoveltyOption = 0.0,
    at_least: AtLeastOption = None,
    diversity: DiversityOption = 0.0,
    diversify_by: DiversifyByOption = "mmr",
    max_per: MaxPerOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items most like an item, a picture, a text or a sound."""
    query = {"item": item, "image": image, "text": text, "audio": audio}
    exactly_one({f"--{name}": value for name, value in query.items()})
    from mmrec.recommender import Recommender

    time = read_time(at)
    wishes = read_wishes(
        where=where,
        without=split_names(without or ""),
        prefer=prefer,
        novelty=novelty,
        at_least=at_least,
        half_life_hours=half_life,
        diversity=diversity,
        diversify_by=diversify_by,
        max_per=max_per,
    )
    recommender = Recommender.load(run, data=data)
    found = recommender.similar(
        item_id=item, image=image, text=text, audio=audio, by=by, k=k, time=time, wishes=wishes
    )
    asked = {name: value for name, value in query.items() if value}
    print_found({**asked, "by": by}, found, as_json)


def print_found(query: Mapping[str, Any], found: Sequence[Any], as_json: bool) -> None:
    """Items found, best first, as a table or as {query, items}."""
    items: list[dict[str, Any]] = [plain(entry) for entry in found]
    unused = [name for name in _ASKED_FOR if not any(item.get(name) for item in items)]
    items = [_without(item, unused) for item in items]
    for item in items:
        if "similar" in item:
            item["similar"] = [_without(near, _ASKED_FOR) for near in item["similar"]]
    if as_json:
        print_json({"query": {key: v for key, v in query.items() if v is not None}, "items": items})
        return
    for item in items:
        if "similar" in item:
            item["similar"] = [each["item_id"] for each in item["similar"]]
        if "why" in item:
            item["why"] = item["why"]["words"]
    print_table([_flat(item) for item in items])


def _without(row: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose columns are what the heads tell, too."""
    columns = {**entry, **entry.get("heads", {})}
    columns.pop("heads", None)
    return columns
