"""`mmrec search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmrec.arguments import (
    AtLeastOption,
    AtOption,
    CountOption,
    DataOption,
    DiversifyByOption,
    DiversityOption,
    HalfLifeOption,
    JsonOption,
    MaxPerOption,
    MixOption,
    NoveltyOption,
    PreferOption,
    RunArgument,
    WhereOption,
    WithoutOption,
    split_names,
)
from mmrec.commands.recommend import print_found
from mmrec.errors import UserError
from mmrec.request import read_time, read_wishes


def search(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What is looked for.")] = None,
    image: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A picture file.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A sound file.")
    ] = None,
    by: Annotated[
        str, typer.Option(metavar="hybrid|lexical|dense", help="Words and meaning, or one alone.")
    ] = "hybrid",
    user: Annotated[str | None, typer.Option(help="Id of the known user who searches.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Item ids of who searches, oldest first, comma-separated.")
    ] = None,
    mix: MixOption = 0.5,
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
    """Search the items by a text, a picture, a sound, or several of these together."""
    if user is not None and history is not None:
        raise UserError("--user and --history are both given, allowed is one of them")
    from mmrec.recommender import Recommender
    from mmrec.retrieval.search import as_way

    time, way = read_time(at), as_way(by)
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
    items = None if history is None else split_names(history)
    found = Recommender.load(run, data=data).search(
        text,
        image=image,
        audio=audio,
        by=way,
        user_id=user,
        history=items,
        mix=mix,
        k=k,
        time=time,
        wishes=wishes,
    )
    asked = {"text": text, "image": image, "audio": audio, "by": by, "user_id": user}
    print_found({**asked, "history": items}, found, as_json)
