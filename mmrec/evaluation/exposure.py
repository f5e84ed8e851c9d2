"""Exposure: which part of the lists' places goes to which group of items.

    lists of a model + groups of items ─► share of the exposure of each group

A place p of a list is worth 1 / log2(1 + p), as a hit there is to NDCG (Singh and Joachims, 2018),
and a model's shares sum to 1. Beside them stand two shares to hold them against: of the candidates,
and of the training events. Groups are items by events (head, middle, tail, new) and the values of
attributes such as a genre or a provider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse

from data_prep.shards import PreparedData
from mmrec.data.ragged import IntArray
from mmrec.evaluation.breakdown import GROUPS, thirds
from mmrec.evaluation.groups import MOST_GROUPS, OTHERS, UNKNOWN, values_of
from mmrec.evaluation.metrics import FloatArray

BY_EVENTS = "events"
NEW = "new"


@dataclass(frozen=True)
class ItemGroups:
    """Groups that the items belong to.

    Attributes:
        by: `events`, or the name of an attribute.
        names: of the G groups.
        shares: (N, G) share of each group in an item; a row sums to 1: who has several is a part
            of each.
    """

    by: str
    names: tuple[str, ...]
    shares: sparse.csr_array


@dataclass(frozen=True)
class Exposure:
    """Shares of one way to group the items; each mapping is group -> share and sums to 1.

    Attributes:
        by: `events`, or the name of an attribute.
        candidates: of the items that could be shown.
        events: of the training events; all 0 where there are none.
        models: model -> of its exposure.
    """

    by: str
    candidates: dict[str, float]
    events: dict[str, float]
    models: dict[str, dict[str, float]]


def event_groups(popularity: IntArray) -> ItemGroups:
    """Head, middle and tail, which hold a third of the training events each, and new items.

    Args:
        popularity: (N,) training events of each item.
    """
    part = thirds(popularity, popularity)
    names = tuple(NEW if name == "none" else name for _, name in GROUPS)
    column_of = {value: column for column, (value, _) in enumerate(GROUPS)}
    columns = np.array([column_of[value] for value in part.tolist()], dtype=np.int64)
    cells = (np.arange(len(part)), columns)
    shape = (len(part), len(names))
    return ItemGroups(BY_EVENTS, names, sparse.csr_array((np.ones(len(part)), cells), shape=shape))


def attribute_groups(data: PreparedData, attribute: str) -> ItemGroups:
    """The twelve commonest values of an attribute of items, all others, and items without one."""
    values = [values_of(data, "items", attribute, row) for row in range(len(data.items))]
    counts = Counter(value for own in values for value in own if value != UNKNOWN)
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    kept = {value: column for column, value in enumerate(ordered[:MOST_GROUPS])}
    names = [*kept]
    for name in (OTHERS, UNKNOWN):
        present = len(ordered) > len(kept) if name == OTHERS else any(UNKNOWN in v for v in values)
        if present:
            kept[name] = len(names)
            names.append(name)
    rows = [row for row, own in enumerate(values) for _ in own]
    columns = [kept[value if value in kept else OTHERS] for own in values for value in own]
    shares = [1 / len(own) for own in values for _ in own]
    shape = (len(values), len(names))
    table = sparse.coo_array((shares, (rows, columns)), shape=shape).tocsr()  # adds what is equal
    return ItemGroups(f"items.{attribute}", tuple(names), table)


def exposures(
    groupings: Sequence[ItemGroups],
    of_models: Mapping[str, Sequence[FloatArray]],
    *,
    candidates: IntArray,
    popularity: IntArray,
) -> list[Exposure]:
    """What is told of each grouping.

    Args:
        groupings: of the items.
        of_models: model -> `exposure_shares` of each grouping.
        candidates: (C,) item_index.
        popularity: (N,) training events of each item.
    """
    found = []
    for place, each in enumerate(groupings):
        of_candidates = np.asarray(each.shares[candidates].mean(axis=0)).ravel()
        of_events = np.asarray(popularity @ each.shares) / max(popularity.sum(), 1)
        models = {name: _named(each, own[place]) for name, own in of_models.items()}
        found.append(
            Exposure(each.by, _named(each, of_candidates), _named(each, of_events), models)
        )
    return found


def _named(groups: ItemGroups, shares: FloatArray) -> dict[str, float]:
    return dict(zip(groups.names, map(float, shares), strict=True))
