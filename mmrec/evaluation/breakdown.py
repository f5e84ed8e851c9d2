"""Accuracy by how much is known: events of the target item, events of the user.

table of ranks + counts ─► head, middle, tail ─► metrics of every model in each

From ranks alone, so that every model is broken down alike and none is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from mmrec.data.ragged import IntArray, offsets_of
from mmrec.evaluation.evaluate import Metrics
from mmrec.evaluation.metrics import metrics_from_ranks

GROUPS = ((2, "head"), (1, "middle"), (0, "tail"), (-1, "none"))
CASE_SLICES = ("warm", "cold", "new_users")


@dataclass(frozen=True)
class Breakdown:
    """Metrics of every model by one count.

    Attributes:
        by: `item` or `user`: whose training events are counted; or the name of an attribute.
        slice: which targets; `all` is the union.
        groups: name -> in words, with the range of the count.
        models: model -> group -> `num_users`, `num_targets`, `hr@10`, `ndcg@10`; an empty group is
            left out.
    """

    by: str
    slice: str
    groups: dict[str, str]
    models: dict[str, dict[str, Metrics]]


def thirds(counts: IntArray, weights: IntArray) -> IntArray:
    """Cuts what is counted into three parts of about equal weight, by count.

        part = floor(3 * share of the weight with a smaller count)      0 tail, 1 middle, 2 head

    Equal counts are never parted; 0 counts are no part: -1.

    Args:
        counts: (n,) of events.
        weights: (n,) the counts themselves for parts that hold a third of the events each, ones
            for parts of a third of the things counted.
    """
    known = counts > 0
    values, place = np.unique(counts[known], return_inverse=True)
    weight = np.bincount(place, weights=weights[known], minlength=len(values))
    total = weight.sum()
    below = np.cumsum(weight) - weight
    # in whole numbers: a share of exactly a third must not fall on either side by rounding
    part = (3 * below // total).astype(np.int64) if len(values) else np.empty(0, dtype=np.int64)
    result = np.full(len(counts), -1, dtype=np.int64)
    result[known] = part[place]
    return result


def breakdowns(
    ranks: pl.DataFrame, *, popularity: IntArray, candidates: IntArray, events: IntArray
) -> list[Breakdown]:
    """By item over all targets; by user over warm and over cold targets.

    Args:
        ranks: model, user_index, item_index, slice, rank, as in `Evaluation.ranks`.
        popularity: (N,) training events of each item.
        candidates: items that can be shown; no others are counted.
        events: (U,) training events of each user.
    """
    found = [by_item(ranks, popularity, candidates)]
    found += [by_user(ranks, events, name) for name in ("warm", "cold")]
    return [each for each in found if each is not None]


def by_item(ranks: pl.DataFrame, popularity: IntArray, candidates: IntArray) -> Breakdown | None:
    """Head, middle, tail: items that hold a third of the training events each; and no events."""
    part = thirds(popularity, popularity)
    rows = ranks.filter(pl.col("slice").is_in(CASE_SLICES))
    counted = np.full(len(popularity), -1, dtype=np.int64)
    counted[candidates] = popularity[candidates]
    return _breakdown("item", "all", rows, part, counted, "item_index", "items")


def by_user(ranks: pl.DataFrame, events: IntArray, slice_name: str) -> Breakdown | None:
    """Thirds of the evaluated users, by the length of their training histories."""
    rows = ranks.filter(pl.col("slice") == slice_name)
    asked = np.unique(rows["user_index"].to_numpy())
    part = np.full(len(events), -1, dtype=np.int64)
    part[asked] = thirds(events[asked], np.ones(len(asked), dtype=np.int64))
    counted = np.full(len(events), -1, dtype=np.int64)
    counted[asked] = events[asked]
    return _breakdown("user", slice_name, rows, part, counted, "user_index", "users")


def _breakdown(
    by: str,
    slice_name: str,
    ranks: pl.DataFrame,
    part: IntArray,
    counts: IntArray,
    column: str,
    noun: str,
) -> Breakdown | None:
    """Filters the table group by group; `counts` below 0 are of things not asked about."""
    if ranks.is_empty():
        return None
    groups: dict[str, str] = {}
    models: dict[str, dict[str, Metrics]] = {
        name: {} for name in ranks["model"].unique(maintain_order=True)
    }
    group_of_row = part[ranks[column].to_numpy()]
    for number, name in GROUPS:
        rows = ranks.filter(pl.Series(group_of_row == number))
        if rows.is_empty():
            continue
        members = counts[(part == number) & (counts >= 0)]
        groups[name] = _label(name, members, noun)
        for (model,), own in rows.group_by("model", maintain_order=True):
            models[str(model)][name] = group_metrics(own)
    return Breakdown(by, slice_name, groups, models)


def group_metrics(ranks: pl.DataFrame) -> Metrics:
    """HR@10 and NDCG@10 of some targets of one model, the mean over users.

    Of a case with several targets only those given count, for the ideal list too.

    Args:
        ranks: user_index, slice, rank; a row a target.
    """
    cases = ranks.group_by("user_index", "slice", maintain_order=True).agg("rank")
    users = cases["user_index"].to_numpy()
    values = metrics_from_ranks(
        cases["rank"].explode().to_numpy(),
        offsets_of(cases["rank"].list.len().to_list()),
        users,
        ks=(10,),
    )
    return {
        "num_users": len(np.unique(users)),
        "num_targets": len(ranks),
        "hr@10": values["hr@10"],
        "ndcg@10": values["ndcg@10"],
    }


def _label(name: str, counts: IntArray, noun: str) -> str:
    number = f"{len(counts):,} {noun if len(counts) != 1 else noun[:-1]}"
    if name == "none":
        return f"no events: {number}"
    low, high = int(counts.min()), int(counts.max())
    span = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{name}: {number}, {span} events"
