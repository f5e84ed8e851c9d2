"""What is told of users beside the items they met: of each event, of each request, of each user.

    History ─► EventColumns ─┐
    request ─► EventColumns ─┼─► Told ─► mmrec.data.signals ─► the model's facts
    users.parquet ───────────┘

Raw values, nothing learnt: the same columns serve a model that reads none of them.

Legend: n events · U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shards import UNKNOWN_TIME, History
from mmrec.data.ragged import IntArray

UNKNOWN_EVENT = -1
Objects = npt.NDArray[np.object_]


@dataclass(frozen=True)
class EventColumns:
    """What is known of n events beside their items.

    Attributes:
        event: (n,) int16, place in the log's event types, -1 where not known.
        value: (n,) float32, NaN where not known.
        time: (n,) int64 Unix seconds, data_prep's UNKNOWN_TIME where not known.
        before: (n,) int64, time of the user's event before it, UNKNOWN_TIME where there is none.
        context: column of the log -> (n,) strings, None where not known.
    """

    event: npt.NDArray[np.int16]
    value: npt.NDArray[np.float32]
    time: IntArray
    before: IntArray
    context: Mapping[str, Objects] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: IntArray | slice) -> EventColumns:
        """Some events; the time before each stays what it was."""
        return EventColumns(
            self.event[rows],
            self.value[rows],
            self.time[rows],
            self.before[rows],
            {name: values[rows] for name, values in self.context.items()},
        )

    def without(self, hidden: npt.NDArray[np.bool_]) -> EventColumns:
        """The same events, of which some are told nothing.

        Args:
            hidden: (n,) bool.
        """
        context = {name: values.copy() for name, values in self.context.items()}
        for values in context.values():
            values[hidden] = None
        return EventColumns(
            np.where(hidden, np.int16(UNKNOWN_EVENT), self.event),
            np.where(hidden, np.float32(np.nan), self.value),
            np.where(hidden, UNKNOWN_TIME, self.time),
            np.where(hidden, UNKNOWN_TIME, self.before),
            context,
        )


@dataclass(frozen=True)
class Told:
    """What is known of users with packed histories.

    Attributes:
        events: of the events of all histories, one after the other.
        requests: of each user's request (U,): its time and context, and the time of his last event.
        attributes: of each user (U,), by name; empty where nothing is known.
    """

    events: EventColumns
    requests: EventColumns
    attributes: Sequence[Mapping[str, Any]]

    def take(self, users: IntArray, events: IntArray) -> Told:
        """Some users, and some events of all histories; -1 for one of which nothing is known."""
        if len(self.events):
            known = self.events.take(events).without(events < 0)
        else:
            known = unknown_events(len(events), list(self.events.context))
        return Told(
            known,
            self.requests.take(users),
            [self.attributes[row] for row in users],
        )


def columns_of(history: History) -> EventColumns:
    """The columns of a history (n events); those that the log lacks are unknown throughout."""
    n = len(history.item_index)
    time = np.full(n, UNKNOWN_TIME) if history.time is None else history.time
    return EventColumns(
        event=np.full(n, UNKNOWN_EVENT, np.int16) if history.event is None else history.event,
        value=np.full(n, np.nan, np.float32) if history.value is None else history.value,
        time=time,
        before=times_before(time),
        context={name: _objects(values) for name, values in (history.context or {}).items()},
    )


def times_before(time: IntArray) -> IntArray:
    """(n,) times of one user's events -> (n,) time of the event before each."""
    return np.concatenate([[UNKNOWN_TIME], time])[: len(time)]


def request_behind(events: EventColumns, request: EventColumns) -> EventColumns:
    """A request (1) as it follows the events (n) that a model is told of."""
    before = events.time[-1:] if len(events) else np.array([UNKNOWN_TIME])
    return replace(request, before=before)


def unknown_events(n: int, context: Sequence[str] = ()) -> EventColumns:
    """N events of which nothing is known."""
    return EventColumns(
        event=np.full(n, UNKNOWN_EVENT, np.int16),
        value=np.full(n, np.nan, np.float32),
        time=np.full(n, UNKNOWN_TIME),
        before=np.full(n, UNKNOWN_TIME),
        context={name: np.full(n, None, object) for name in context},
    )


def a_request(*, time: float | None, context: Mapping[str, str | None]) -> EventColumns:
    """One request, whose last event is not known yet; see `request_behind`.

    Args:
        time: Unix seconds, None where not known.
        context: by column of the log.
    """
    request = unknown_events(1, list(context))
    request.time[0] = UNKNOWN_TIME if time is None else int(time)
    for name, value in context.items():
        request.context[name][0] = value
    return request


def join_columns(parts: Sequence[EventColumns]) -> EventColumns:
    """Columns one after the other; contexts are those that all parts have."""
    if not parts:
        return unknown_events(0)
    names = [name for name in parts[0].context if all(name in each.context for each in parts)]
    return EventColumns(
        event=np.concatenate([each.event for each in parts]),
        value=np.concatenate([each.value for each in parts]),
        time=np.concatenate([each.time for each in parts]),
        before=np.concatenate([each.before for each in parts]),
        context={name: np.concatenate([each.context[name] for each in parts]) for name in names},
    )


def _objects(values: Sequence[Any]) -> Objects:
    """Strings or None as an array."""
    found = np.empty(len(values), object)
    found[:] = values
    return found
