"""`mmrec popular`."""

from __future__ import annotations

from typing import Annotated

import typer

from mmrec.arguments import (
    AtOption,
    CountOption,
    DataOption,
    DiversifyByOption,
    DiversityOption,
    JsonOption,
    MaxPerOption,
    PreferOption,
    RunArgument,
    WhereOption,
    WithoutOption,
    split_names,
)
from mmrec.commands.recommend import print_found
from mmrec.request import read_time, read_wishes


def popular(
    run: RunArgument,
    window: Annotated[
        float | None, typer.Option(metavar="HOURS", help="Count the last hours alone.")
    ] = None,
    fade: Annotated[
        float | None, typer.Option(metavar="HOURS", help="Age at which an event counts half.")
    ] = None,
    at: AtOption = None,
    k: CountOption = 10,
    where: WhereOption = None,
    without: WithoutOption = None,
    prefer: PreferOption = None,
    diversity: DiversityOption = 0.0,
    diversify_by: DiversifyByOption = "mmr",
    max_per: MaxPerOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the items that are met most, of all times or lately; nothing is asked of a user."""
    from mmrec.recommender import Recommender
    from mmrec.retrieval.popular import Trend

    time = read_time(at)
    trend = None if window is None and fade is None else Trend(window, fade)
    wishes = read_wishes(
        where=where,
        without=split_names(without or ""),
        prefer=prefer,
        diversity=diversity,
        diversify_by=diversify_by,
        max_per=max_per,
        trend=trend,
    )
    found = Recommender.load(run, data=data).popular(k=k, time=time, wishes=wishes)
    print_found({"window": window, "fade": fade, "time": time}, found, as_json)
