"""Features of two catalogues: values of attributes, popularity, lengths of histories, media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.catalogue import AttributeSpec
from mmrec.drift.buckets import category_gap, number_gap, unseen_gap
from mmrec.drift.lines import Line, Part, enough
from mmrec.drift.sides import IntArray, Side
from mmrec.drift.two_samples import FloatArray, share_gap

UNSEEN_LIMIT = 0.1
"""Share of values that the earlier side lacks, beyond those that more of the same would bring."""
MISSING_LIMIT = 0.1
"""Difference of the shares of items without a modality."""

Records = Sequence[Mapping[str, Any]]
Specs = Mapping[str, AttributeSpec]


def attribute_lines(earlier: Side, new: Side) -> list[Line]:
    """Values of the attributes of items and of users that both catalogues have, by type."""
    before, after = earlier.data.catalogue, new.data.catalogue
    lines = []
    common = _common(before.items.attributes, after.items.attributes)
    if common:
        lines += record_lines("attributes", common, earlier.records, new.records)
    if before.users is not None and after.users is not None:
        common = _common(before.users.attributes, after.users.attributes)
        if common:
            lines += record_lines("users", common, earlier.users, new.users)
    return lines


def _common(earlier: Specs, new: Specs) -> dict[str, str]:
    """Type of each attribute of both sides; what has two types is no one attribute."""
    return {
        name: spec.type
        for name, spec in new.items()
        if name in earlier and earlier[name].type == spec.type
    }


def record_lines(
    part: Part, types: Mapping[str, str], earlier: Records, new: Records
) -> list[Line]:
    """Stability of each attribute, and of those with words the share of words not met before.

    Args:
        part: whose attributes they are.
        types: category, set or number, by name.
        earlier: known attributes, an item or user each.
        new: likewise.
    """
    lines = []
    is_enough = enough(len(earlier), len(new))
    for name, kind in types.items():
        if kind == "number":
            numbers = [_numbers(side, name) for side in (earlier, new)]
            gap = number_gap(*numbers) if is_enough else None
            means = [float(np.nanmean(side)) if _any_known(side) else None for side in numbers]
            lines.append(Line(part, name, "stability", gap, *means))
            continue
        words, words_new = _words(earlier, name), _words(new, name)
        gap = category_gap(words, words_new) if is_enough else None
        lines.append(Line(part, name, "stability", gap))
        known = sum(map(bool, words)), sum(map(bool, words_new))
        if enough(*known):
            gap = unseen_gap(words, words_new, limit=UNSEEN_LIMIT)
            lines.append(Line(part, name, "values not met before", gap, new=gap.figure))
    return lines


def event_lines(earlier: Side, new: Side) -> list[Line]:
    """Popularity of items and lengths of histories, of all events of each log.

    Popularity is compared at as many events an item: the larger log is thinned at random to those
    of the smaller, since counts of few events are spread more widely and that is no gap.
    """
    if earlier.split is None or new.split is None:
        return []
    lines = []
    popularity = _thin(_events(earlier), _events(new), seed=new.seed)
    lengths = [side.split.full.lengths.astype(np.float64) for side in (earlier, new) if side.split]
    for name, (before, after) in (
        ("popularity of items", popularity),
        ("length of histories", lengths),
    ):
        is_enough = enough(len(before), len(after))
        gap = number_gap(before, after) if is_enough else None
        medians = [float(np.median(side)) if len(side) else None for side in (before, after)]
        lines.append(Line("events", name, "stability", gap, *medians))
    return lines


def media_lines(earlier: Side, new: Side) -> list[Line]:
    """Share of the items that lack a modality, of every one that a side has."""
    names = [side.data.items.modalities for side in (earlier, new)]
    n, m = int(earlier.there.sum()), int(new.there.sum())
    lines = []
    for name in dict.fromkeys([*names[0], *names[1]]):
        shares = _missing(earlier, name), _missing(new, name)
        gap = None
        if enough(n, m):
            gap = share_gap(*shares, num_earlier=n, num_new=m, limit=MISSING_LIMIT, two_sided=True)
        lines.append(Line("media", name, "missing", gap, *shares))
    return lines


def _numbers(records: Records, name: str) -> FloatArray:
    return np.array([each.get(name, np.nan) for each in records], np.float64)


def _any_known(numbers: FloatArray) -> bool:
    return not bool(np.isnan(numbers).all())


def _words(records: Records, name: str) -> list[list[str]]:
    found = (each.get(name) for each in records)
    return [
        [] if words is None else [words] if isinstance(words, str) else list(words)
        for words in found
    ]


def _events(side: Side) -> IntArray:
    """(N,) events of each item that is there."""
    assert side.split is not None
    events = np.zeros(len(side.data.items), np.int64)
    table = side.split.items
    events[table["item_index"].to_numpy()] = table["num_events"].to_numpy()
    return events[side.there]


def _thin(*sides: IntArray, seed: int) -> list[FloatArray]:
    """Counts as they would be at the least mean of any side, each event kept by chance."""
    random = np.random.default_rng((seed, 3))
    means = [float(side.mean()) if len(side) else 0.0 for side in sides]
    kept = [min(means) / mean if mean else 0.0 for mean in means]
    return [
        random.binomial(side, share).astype(np.float64)
        for side, share in zip(sides, kept, strict=True)
    ]


def _missing(side: Side, modality: str) -> float:
    if modality not in side.data.items.modalities:
        return 1.0
    has = side.data.items.has(modality)[side.there]
    return 1 - float(has.mean()) if len(has) else 1.0
