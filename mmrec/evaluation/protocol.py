"""Who is asked what: cases, candidates and seen items of a split, and the hash of the rules.

    targets table + complete histories ─► Cases ─► ranking

One case is one user with one input history. A user may have two: the warm target with everything
before it, and the cold target with the warm events before that.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.shards import UNKNOWN_TIME
from mmrec.data.new_users import KnownUsersSplit
from mmrec.data.ragged import IntArray, Ragged
from mmrec.data.thinning import ThinnedSplit
from mmrec.data.told import Told, columns_of, join_columns, request_behind, times_before
from mmrec.evaluation.metrics import KS

if TYPE_CHECKING:
    from data_prep.shards import History, PreparedData, Split

Which = Literal["validation", "test"]
CASE_SLICES = ("warm", "cold", "new_users")
TARGETS_SCHEMA = {
    "user_index": pl.Int64,
    "item_index": pl.Int64,
    "position": pl.Int64,
    "slice": pl.String,
}
"""Columns of a table of targets, as `Split.targets` has them."""
BoolArray = npt.NDArray[np.bool_]


# Ends of an availability that is open, on either side.
ALWAYS, FOR_EVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Availability:
    """When the cases are asked, and between which instants the candidates can be shown.

    Attributes:
        asked: (U,) Unix seconds of the event at each case's position; data_prep's UNKNOWN_TIME
            where not known: nothing is left out then.
        start: (C,) first instant, ALWAYS where there is none.
        end: (C,) first instant no more, FOR_EVER where there is none.
    """

    asked: IntArray
    start: IntArray
    end: IntArray

    def lacks(self, rows: IntArray, first: int, last: int) -> BoolArray:
        """(b, last - first) True where a candidate cannot be shown when the case is asked."""
        asked = self.asked[rows][:, None]
        outside: BoolArray = (asked < self.start[first:last]) | (asked >= self.end[first:last])
        outside &= asked != UNKNOWN_TIME
        return outside


@dataclass(frozen=True)
class Cases:
    """What a model is asked in one evaluation.

    Attributes:
        user_index: (U,) user of each case.
        history: U rows of item_index, oldest to newest, without cold items: the model's input.
        seen: U rows of item_index that no list may show; never a target; empty where items repeat.
        targets: U rows of item_index, one at least.
        slice: (U,) "warm", "cold" or "new_users".
        candidates: (C,) item_index, ascending: items with at least one event in the log.
        candidate_is_cold: (C,) True for the cold items that this evaluation asks for.
        num_items: N, items of the catalogue.
        history_time: U rows of Unix seconds beside `history`, data_prep's UNKNOWN_TIME where not
            known; None where the log has no times.
        history_event: U rows of event types beside `history`, -1 where not known; None where the
            log has none.
        availability: None where the catalogue or the log says nothing of it.
        told: what is known of the events of `history`, of each case's request (that of its target)
            and user, for a model that reads it; None where cases were made of items alone.
    """

    user_index: IntArray
    history: Ragged
    seen: Ragged
    targets: Ragged
    slice: list[str]
    candidates: IntArray
    candidate_is_cold: BoolArray
    num_items: int
    history_time: Ragged | None = None
    history_event: Ragged | None = None
    availability: Availability | None = None
    told: Told | None = None

    def __post_init__(self) -> None:
        rows = {len(self.history), len(self.seen), len(self.targets), len(self.slice)}
        if rows != {len(self.user_index)}:
            raise ValueError(f"the parts of {len(self.user_index)} cases have {rows} rows")
        if len(self.candidate_is_cold) != len(self.candidates):
            raise ValueError("candidate_is_cold and candidates differ in length")
        unknown = set(self.slice) - set(CASE_SLICES)
        if unknown:
            raise ValueError(f"slice {unknown.pop()!r}: allowed are {', '.join(CASE_SLICES)}")

    def __len__(self) -> int:
        return len(self.user_index)

    def take(self, rows: IntArray) -> Cases:
        """The given cases among the same candidates, e.g. a sample for a quick look."""
        return Cases(
            user_index=self.user_index[rows],
            history=self.history.take(rows),
            seen=self.seen.take(rows),
            targets=self.targets.take(rows),
            slice=[self.slice[row] for row in rows],
            candidates=self.candidates,
            candidate_is_cold=self.candidate_is_cold,
            num_items=self.num_items,
            history_time=None if self.history_time is None else self.history_time.take(rows),
            history_event=None if self.history_event is None else self.history_event.take(rows),
            availability=None
            if self.availability is None
            else replace(self.availability, asked=self.availability.asked[rows]),
            told=None if self.told is None else self.told.take(rows, self._places(rows)),
        )

    def _places(self, rows: IntArray) -> IntArray:
        """Places of the events of some cases among those of all."""
        everything = np.arange(len(self.history.values), dtype=np.int64)
        return Ragged(everything, self.history.offsets).take(rows).values

    def unavailable(self, rows: IntArray, first: int, last: int) -> BoolArray | None:
        """Candidates that could not be shown when a case is asked.

        A target was met, so it is never among them, whatever the catalogue says.

        Args:
            rows: (b,) of the cases.
            first: place of a candidate.
            last: one past the place of another.

        Returns:
            (b, last - first), True = left out; None where all can be shown.
        """
        if self.availability is None:
            return None
        lacking = self.availability.lacks(rows, first, last)
        targets = self.targets.take(rows)
        place = np.searchsorted(self.candidates, targets.values)
        inside = (place >= first) & (place < last)
        lacking[targets.row_of_value[inside], place[inside] - first] = False
        return lacking


def without_targets(seen: Ragged, targets: Ragged) -> Ragged:
    """The seen items of each case, once each and without its targets, which are never removed."""
    num_items = 1 + max((int(r.values.max()) for r in (seen, targets) if len(r.values)), default=0)
    keys = np.unique(seen.row_of_value * num_items + seen.values)
    keys = keys[~np.isin(keys, targets.row_of_value * num_items + targets.values)]
    lengths = np.bincount(keys // num_items, minlength=len(seen))
    return Ragged(keys % num_items, np.concatenate([[0], np.cumsum(lengths)]))


def load_cases(data: PreparedData, split: Split, which: Which) -> Cases:
    """Builds the cases of a split.

    Args:
        data: the prepared folder; its catalogue says whether items repeat.
        split: one of its splits; of a thinned one only known events are inputs.
        which: whose targets; "test" is read by evaluation only.

    Returns:
        Cases in ascending order of user, a user's warm case before the cold one. Targets of one
        user, slice and position are one case: where the split is by time that is the whole list.
    """
    return cases_of(data, split, split.targets(which), which)


def cases_of(
    data: PreparedData,
    split: Split,
    targets_table: pl.DataFrame,
    which: Which,
    *,
    first_events: int | None = None,
) -> Cases:
    """The cases of any table of targets, by the rules of the split's own.

    Args:
        data: the prepared folder.
        split: one of its splits.
        targets_table: user_index, item_index, position (in the complete history), slice.
        which: whose cold items count as such.
        first_events: how many of a user's events on warm items are input; None: all. What he met
            is left out of his lists all the same.
    """
    roles = split.items.sort("item_index")["role"].to_numpy()
    is_cold = is_cold_item(split)
    table = _one_row_a_case(targets_table)
    row_of_user = {int(user): row for row, user in enumerate(split.full.user_index)}

    inputs: dict[str, list[IntArray]] = {"item": [], "time": [], "event": [], "seen": []}
    asked: list[int] = []
    events, requests = [], []
    history: History | None = None
    for user_index, position in table.select("user_index", "position").iter_rows():
        if history is None or history.user_index != user_index:
            history = split.full.read(row_of_user[user_index])
            usable = ~is_cold[history.item_index]
            if isinstance(split, ThinnedSplit):
                usable &= split.knows(history)
            if first_events is not None:
                usable &= np.cumsum(usable) <= first_events
            columns = columns_of(history)
        before, wanted = history.item_index[:position], usable[:position]
        inputs["seen"].append(before)
        inputs["item"].append(before[wanted])
        inputs["time"].append(_part(history.time, wanted))
        inputs["event"].append(_part(history.event, wanted))
        known = columns.take(np.flatnonzero(wanted))
        events.append(replace(known, before=times_before(known.time)))
        requests.append(request_behind(known, columns.take(np.array([position]))))
        asked.append(UNKNOWN_TIME if history.time is None else int(history.time[position]))

    targets = Ragged.from_rows(table["item_index"].to_list())
    seen = Ragged.from_rows(inputs["seen"])
    if data.catalogue.repeats != "forbid":
        seen = seen.keep(np.zeros(len(seen.values), dtype=bool))
    history_items = Ragged.from_rows(inputs["item"])
    times, types = Ragged.from_rows(inputs["time"]), Ragged.from_rows(inputs["event"])
    num_events = len(history_items.values)
    candidates = np.flatnonzero(roles != "no_events").astype(np.int64)
    return Cases(
        user_index=table["user_index"].to_numpy().astype(np.int64),
        history=history_items,
        seen=without_targets(seen, targets),
        targets=targets,
        slice=table["slice"].to_list(),
        candidates=candidates,
        candidate_is_cold=roles[candidates] == f"cold_{which}",
        num_items=len(data.items),
        history_time=times if len(times.values) == num_events else None,
        history_event=types if len(types.values) == num_events else None,
        availability=_availability(data, candidates, np.array(asked, dtype=np.int64)),
        told=Told(
            join_columns(events),
            join_columns(requests),
            [data.user_attributes[int(user)] for user in table["user_index"]],
        ),
    )


def _availability(data: PreparedData, candidates: IntArray, asked: IntArray) -> Availability | None:
    """What the catalogue says of the candidates; None where it or the log knows no instants."""
    if data.catalogue.items.available is None or not (asked != UNKNOWN_TIME).any():
        return None
    spans = [data.items.record(int(row)).get("available", {}) for row in candidates]
    start = [ALWAYS if span.get("from") is None else span["from"] for span in spans]
    end = [FOR_EVER if span.get("until") is None else span["until"] for span in spans]
    return Availability(asked, np.array(start, dtype=np.int64), np.array(end, dtype=np.int64))


def protocol_document(
    split: Split, which: Which, *, repeats: str, available: bool = False
) -> dict[str, Any]:
    """The rules that a figure was made by, with the hash that stands for them all.

    Args:
        split: whose targets.
        which: of them.
        repeats: the catalogue's word.
        available: candidates were left out that were not available at the target's time.
    """
    candidates = "items with at least one event in the log"
    rules: dict[str, Any] = {
        "name": split.name,
        "split_hash": split.hash,
        "targets": which,
        "candidates": candidates + ", available at the target's time" * available,
        "seen": "removed" if repeats == "forbid" else "kept",
        "ranking": "all candidates",
        "ties": "expected rank",
        "mean": "over users",
        "ks": list(KS),
    }
    if isinstance(split, ThinnedSplit):
        rules["event_share"] = split.share
    if isinstance(split, KnownUsersSplit):
        rules["new_users"] = split.share
    return {**rules, "hash": protocol_hash(rules)}


def protocol_hash(rules: dict[str, Any]) -> str:
    """sha256 of the rules as sorted JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def is_cold_item(split: Split) -> BoolArray:
    """(N,) True for the cold items of a split, those of validation and of the test alike."""
    roles = split.items.sort("item_index")["role"].to_numpy()
    cold: BoolArray = np.char.startswith(roles.astype(str), "cold")
    return cold


def training_popularity(split: Split) -> IntArray:
    """(N,) events of each item in the training histories."""
    counts = split.items.sort("item_index")["num_train_events"]
    return counts.to_numpy().astype(np.int64)


def training_histories(split: Split) -> Ragged:
    """The training histories as rows of item_index; what baselines are fitted to."""
    return Ragged.from_rows(split.train.read(row).item_index for row in range(len(split.train)))


def _one_row_a_case(targets: pl.DataFrame) -> pl.DataFrame:
    """user_index, slice, position, item_index (list), in the order of users, warm before cold."""
    rank = pl.col("slice").replace_strict({name: row for row, name in enumerate(CASE_SLICES)})
    return (
        targets.sort("user_index", "position", maintain_order=True)
        .group_by("user_index", "slice", "position", maintain_order=True)
        .agg(pl.col("item_index"))
        .sort("user_index", rank, "position", maintain_order=True)
    )


def _part(values: npt.NDArray[Any] | None, wanted: BoolArray) -> IntArray:
    """The wanted ones of the first values, or nothing where the log has no such column."""
    if values is None:
        return np.empty(0, dtype=np.int64)
    return values[: len(wanted)][wanted].astype(np.int64)
