"""Splits a log into training histories, targets and cold items, without leakage.

Targets are fixed on the complete log first, then cold items are drawn, then training is what
remains: of each user the warm events before the earliest of his targets.

    complete log ──► targets (protocol) ──► cold items (seeded hash) ──► training histories

A position counts events of the user's *complete* history: a target at position p is asked with
``complete[:p]`` without cold items as input, and ``complete[:p]`` with them as seen items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.catalogue import SplitSpec, TargetsSpec
from data_prep.errors import DataError

# A cold target is asked only where this much warm history says something about the user's taste.
MIN_WARM_BEFORE_COLD = 5

ROLES = ("no_events", "warm", "cold_validation", "cold_test")
NO_EVENTS, WARM, COLD_VALIDATION, COLD_TEST = range(4)

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SplitTables:
    """A split of one log.

    Attributes:
        train: training events: user_index, position and the log's own columns, in the log's order.
        targets: "validation" and "test", each user_index, item_index, position, slice ("warm",
            "cold", or "new_users" for a user with no warm event before the target).
        items: one row an item: item_index, role ("warm", "cold_validation", "cold_test",
            "no_events"), num_events (complete log), num_train_events.
        summary: counts, JSON values.
        hash: sha256 over the settings and the content of the log.
    """

    train: pl.DataFrame
    targets: dict[str, pl.DataFrame]
    items: pl.DataFrame
    summary: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class _Log:
    """The complete log as arrays, one entry an event, users contiguous."""

    user: Ints
    item: Ints
    first: Ints  # row of the first event of this event's user
    position: Ints
    eligible: Bools  # may be a target
    time: Ints | None


@dataclass(frozen=True)
class _Targets:
    """Rows of the log that are asked, and from which position on they are unknown."""

    row: Ints
    position: Ints


def make_split(
    interactions: pl.DataFrame,
    spec: SplitSpec,
    *,
    repeats: Literal["allow", "forbid"],
    num_items: int,
    item_ids: Sequence[str],
    groups: npt.NDArray[np.integer[Any]] | None = None,
    targets: TargetsSpec | None = None,
) -> SplitTables:
    """Splits a log by a protocol.

    leave_one_out: a user's last event that may be a target is the test target, the one before it
    the validation target; both need an event before them. time: validation targets are the events
    from ``validation_time`` up to ``test_time``, test targets those from ``test_time`` on; history
    lies strictly before the instant and is never rolled, so all targets of one list share their
    position. An item is a target once, and where repeats are forbidden only if the user had not
    met it. none: everything is training.

    Cold targets: leave_one_out, the user's last event on an item of the set; time, all his events
    on such items after the instant; both with at least five warm events before. Other targets
    that fall on a cold item are dropped.

    Args:
        interactions: the complete log with user_index, item_index (int64) and event columns;
            users contiguous, each in his order. It is never sorted here.
        spec: protocol, cold shares, seed.
        repeats: may a user meet an item again?
        num_items: items of the catalogue, those without events included.
        item_ids: id of each item, (num_items,); the draw depends on ids, not on their order.
        groups: near-duplicate group of each item, (num_items,) int; a group is drawn whole. A
            group larger than what is left to draw stays warm.
        targets: which events may be targets; None means all.

    Raises:
        DataError: the protocol needs times and an event has none.
        ValueError: users not contiguous, or arrays of the wrong length.
    """
    spec_of_targets = targets or TargetsSpec()
    log = _read_log(interactions, repeats=repeats, targets=spec_of_targets)
    if len(item_ids) != num_items or (groups is not None and len(groups) != num_items):
        raise ValueError(f"item_ids and groups must have num_items = {num_items} entries")
    if log.item.size and not 0 <= int(log.item.min()) <= int(log.item.max()) < num_items:
        raise ValueError(f"item_index must lie in 0 … {num_items - 1}")

    asked = _choose_targets(log, spec)
    num_events = np.bincount(log.item, minlength=num_items)
    known = np.flatnonzero(num_events)
    role = _draw_roles(num_events, spec, item_ids=item_ids, groups=groups)
    is_warm = role[log.item] == WARM
    warm_before = _count_before(is_warm, log.first)

    kept: dict[str, pl.DataFrame] = {}
    dropped: dict[str, int] = {}
    train_end = _train_limit(log, spec)
    for which, cold_role in (("validation", COLD_VALIDATION), ("test", COLD_TEST)):
        plain = asked[which]
        on_warm = role[log.item[plain.row]] == WARM
        dropped[which] = int((~on_warm).sum())
        warm = _Targets(plain.row[on_warm], plain.position[on_warm])
        cold = _choose_cold(log, spec, plain, in_set=role == cold_role, warm_before=warm_before)
        for chosen in (warm, cold):
            np.minimum.at(train_end, log.first[chosen.row], chosen.position)
        kept[which] = _target_table(log, warm, cold, warm_before=warm_before)

    in_train = is_warm & (log.position < train_end[log.first])
    items = pl.DataFrame(
        {
            "item_index": np.arange(num_items, dtype=np.int64),
            "role": np.asarray(ROLES, dtype=object)[role].tolist(),
            "num_events": num_events.astype(np.int64),
            "num_train_events": np.bincount(log.item[in_train], minlength=num_items).astype(
                np.int64
            ),
        },
        schema_overrides={"role": pl.String},
    )
    rest = [name for name in interactions.columns if name not in ("user_index", "position")]
    train = interactions.with_columns(position=pl.Series(log.position)).select(
        "user_index", "position", *rest
    )
    return SplitTables(
        train=train.filter(pl.Series(in_train)),
        targets=kept,
        items=items,
        summary=_summarise(log, kept, dropped, role, is_warm=is_warm, in_train=in_train),
        hash=_hash(
            interactions,
            spec,
            repeats=repeats,
            known_ids=[item_ids[index] for index in known.tolist()],
            groups=None if groups is None else groups[known],
            targets=spec_of_targets,
        ),
    )


def _read_log(
    interactions: pl.DataFrame, *, repeats: Literal["allow", "forbid"], targets: TargetsSpec
) -> _Log:
    user = interactions["user_index"].to_numpy().astype(np.int64)
    item = interactions["item_index"].to_numpy().astype(np.int64)
    starts = np.flatnonzero(np.diff(user, prepend=user[:1] - 1))
    if len(np.unique(user[starts])) != len(starts):
        raise ValueError("interactions must have each user's events together, in order")
    first = np.repeat(starts, np.diff(starts, append=len(user)))
    may_be_target = pl.lit(True)
    if targets.events is not None:
        may_be_target &= pl.col("event").is_in(list(targets.events)).fill_null(False)
    if targets.min_value is not None:
        may_be_target &= (pl.col("value") >= targets.min_value).fill_null(False)
    if repeats == "forbid":
        # What the user has met is filtered from his list, so it could never be hit.
        may_be_target &= pl.struct("user_index", "item_index").is_first_distinct()
    eligible = interactions.select(eligible=may_be_target)["eligible"].to_numpy()
    time: Ints | None = None
    if "time" in interactions.columns and interactions["time"].null_count() == 0:
        time = interactions["time"].to_numpy().astype(np.int64)
    return _Log(
        user=user,
        item=item,
        first=first,
        position=np.arange(len(user), dtype=np.int64) - first,
        eligible=np.broadcast_to(eligible, user.shape),
        time=time,
    )


def _choose_targets(log: _Log, spec: SplitSpec) -> dict[str, _Targets]:
    """Targets on the full log, before any item is cold."""
    if spec.protocol == "leave_one_out":
        rows = np.flatnonzero(log.eligible & (log.position > 0))
        test, others = _last_of_each_user(rows, log)
        validation, _ = _last_of_each_user(others, log)
        return {
            "validation": _Targets(validation, log.position[validation]),
            "test": _Targets(test, log.position[test]),
        }
    if spec.protocol == "time":
        assert spec.validation_time is not None and spec.test_time is not None
        validation_from = _positions_before(log, spec.validation_time)
        test_from = _positions_before(log, spec.test_time)
        is_test = log.position >= test_from
        is_validation = (log.position >= validation_from) & ~is_test
        return {
            "validation": _targets_after(log, is_validation, validation_from),
            "test": _targets_after(log, is_test, test_from),
        }
    nothing = np.zeros(0, dtype=np.int64)
    return {which: _Targets(nothing, nothing) for which in ("validation", "test")}


def _last_of_each_user(rows: Ints, log: _Log) -> tuple[Ints, Ints]:
    """Parts ascending rows of the log into each user's last one and the others."""
    is_last = np.diff(log.user[rows], append=-1) != 0
    return rows[is_last], rows[~is_last]


def _positions_before(log: _Log, instant: int) -> Ints:
    """For each event, how many events its user has before his first one at or after the instant.

    Where `order` contradicts time this ends the history early rather than let a later event in.
    """
    if log.time is None:
        raise DataError(
            "split.protocol: 'time' needs the time of every event, and some have none; "
            "give interactions.time a full column or choose leave_one_out"
        )
    end = np.full(len(log.user), np.iinfo(np.int64).max)
    late = np.flatnonzero(log.time >= instant)
    np.minimum.at(end, log.first[late], log.position[late])
    num_of_user = np.bincount(log.first, minlength=len(log.user))
    np.minimum(end, num_of_user, out=end)
    return end[log.first]


def _targets_after(log: _Log, within: Bools, start: Ints) -> _Targets:
    """Eligible events of a period, each item of a user once, asked from where the period starts."""
    rows = np.flatnonzero(within & log.eligible)
    pairs = np.stack([log.user[rows], log.item[rows]], axis=1)
    _, once = np.unique(pairs, axis=0, return_index=True)
    rows = rows[np.sort(once)]
    return _Targets(rows, start[rows])


def _draw_roles(
    num_events: Ints,
    spec: SplitSpec,
    *,
    item_ids: Sequence[str],
    groups: npt.NDArray[np.integer[Any]] | None,
) -> Ints:
    """Draws the cold sets among items with events by sha256 of seed and id, groups together."""
    known = np.flatnonzero(num_events > 0)
    role = np.where(num_events > 0, WARM, NO_EVENTS)
    if not spec.has_cold:
        return role
    members: dict[int, list[int]] = {}
    for index in known.tolist():
        members.setdefault(index if groups is None else int(groups[index]), []).append(index)

    def draw_key(group: list[int]) -> tuple[bytes, str]:
        first_id = min(item_ids[index] for index in group)
        return hashlib.sha256(f"{spec.seed}:{first_id}".encode()).digest(), first_id

    waiting = sorted(members.values(), key=draw_key)
    # The test set is drawn first, so that another cold_validation does not change it.
    for cold_role, share in ((COLD_TEST, spec.cold_test), (COLD_VALIDATION, spec.cold_validation)):
        left = round(share * len(known))
        stay: list[list[int]] = []
        for group in waiting:
            if len(group) <= left:
                role[group] = cold_role
                left -= len(group)
            else:
                stay.append(group)
        waiting = stay
    return role


def _choose_cold(
    log: _Log, spec: SplitSpec, plain: _Targets, *, in_set: Bools, warm_before: Ints
) -> _Targets:
    """Cold targets of one set."""
    if spec.protocol == "time":
        rows, position = plain.row, plain.position
    else:
        rows, position = np.arange(len(log.user), dtype=np.int64), log.position
        rows, position = rows[log.eligible], position[log.eligible]
    enough = warm_before[log.first[rows] + position] >= MIN_WARM_BEFORE_COLD if len(rows) else []
    chosen = in_set[log.item[rows]] & np.asarray(enough, dtype=bool)
    rows, position = rows[chosen], position[chosen]
    if spec.protocol != "time":
        rows, _ = _last_of_each_user(rows, log)
        position = log.position[rows]
    return _Targets(rows, position)


def _count_before(is_warm: Bools, first: Ints) -> Ints:
    """Warm events of the same user before each event, (num_events,)."""
    before: Ints = np.cumsum(is_warm) - is_warm
    return before - before[first]


def _train_limit(log: _Log, spec: SplitSpec) -> Ints:
    """Position at which training ends whatever the targets are, by row of a user's first event."""
    end = np.full(len(log.user), np.iinfo(np.int64).max)
    if spec.protocol == "time":
        assert spec.validation_time is not None
        np.minimum(end, _positions_before(log, spec.validation_time), out=end)
    return end


def _target_table(log: _Log, warm: _Targets, cold: _Targets, *, warm_before: Ints) -> pl.DataFrame:
    """One table of warm and cold targets, by user, position and place in the log."""
    row = np.concatenate([warm.row, cold.row])
    position = np.concatenate([warm.position, cold.position])
    known = warm_before[log.first[row] + position] > 0 if len(row) else np.zeros(0, dtype=bool)
    is_cold = np.arange(len(row)) >= len(warm.row)
    names = np.where(is_cold, "cold", np.where(known, "warm", "new_users"))
    by_place = np.lexsort((row, position, log.first[row]))
    return pl.DataFrame(
        {
            "user_index": log.user[row][by_place],
            "item_index": log.item[row][by_place],
            "position": position[by_place],
            "slice": names[by_place].tolist(),
        },
        schema_overrides={"slice": pl.String},
    )


def _summarise(
    log: _Log,
    targets: Mapping[str, pl.DataFrame],
    dropped: Mapping[str, int],
    role: Ints,
    *,
    is_warm: Bools,
    in_train: Bools,
) -> dict[str, Any]:
    num_warm = int(is_warm.sum())
    num_train = int(in_train.sum())
    return {
        "num_users": len(np.unique(log.first)),
        "num_events": len(log.user),
        "num_warm_events": num_warm,
        "num_train_events": num_train,
        "num_train_users": len(np.unique(log.first[in_train])),
        "train_share_of_warm_events": round(num_train / num_warm, 6) if num_warm else None,
        "num_items": {name: int((role == code).sum()) for code, name in enumerate(ROLES)},
        "num_targets": {
            which: {
                name: int((table["slice"] == name).sum()) for name in ("warm", "cold", "new_users")
            }
            for which, table in targets.items()
        },
        "num_targets_dropped_on_cold_items": dict(dropped),
    }


def _hash(
    interactions: pl.DataFrame,
    spec: SplitSpec,
    *,
    repeats: str,
    known_ids: list[str],
    groups: npt.NDArray[np.integer[Any]] | None,
    targets: TargetsSpec,
) -> str:
    """Sha256 of all that decides a split.

    Its name is a label and left out. Items without events are left out too: new items must not
    make another split of the same log.
    """
    settings = {
        "split": spec.model_dump(mode="json", exclude={"name"}),
        "repeats": repeats,
        "targets": targets.model_dump(mode="json"),
        "min_warm_before_cold": MIN_WARM_BEFORE_COLD,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(json.dumps(known_ids).encode())
    if groups is not None:
        _, first_member, group = np.unique(groups, return_index=True, return_inverse=True)
        digest.update(first_member[group].astype("<i8").tobytes())
    fields = ("user_index", "item_index", "time", "event", "value")
    for name in interactions.columns:
        if name in fields or name.startswith("context."):
            digest.update(name.encode())
            _add_column(digest, interactions[name])
    return digest.hexdigest()


def _add_column(digest: hashlib._Hash, column: pl.Series) -> None:
    """Adds a column's values to a digest, nulls apart, by bytes that no library version changes."""
    digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
    if column.dtype == pl.String:
        names = sorted(column.drop_nulls().unique().to_list())
        digest.update(json.dumps(names).encode())
        codes = pl.Series(range(len(names)), dtype=pl.Int64)
        column = column.replace_strict(pl.Series(names, dtype=pl.String), codes, default=None)
    kind = "<f8" if column.dtype.is_float() else "<i8"
    digest.update(column.fill_null(0).to_numpy().astype(kind).tobytes())
