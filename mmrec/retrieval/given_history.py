"""A history that comes with a question: its events, in order of time where all have one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HistoryEvent = (
    str
    | int
    | tuple[str | int, str | None, float | None]
    | tuple[str | int, str | None, float | None, float | None]
)
"""An item id, or (item id, event type, Unix seconds[, value]); all but the id may be None."""


@dataclass(frozen=True)
class GivenEvent:
    """An event of a history that came with the question; what was not said is None."""

    item_id: str
    type: str | None = None
    time: float | None = None
    value: float | None = None


def in_order(history: Sequence[HistoryEvent]) -> list[GivenEvent]:
    """Events, oldest first."""
    events = [
        GivenEvent(str(event[0]), *event[1:])
        if isinstance(event, tuple)
        else GivenEvent(str(event))
        for event in history
    ]
    times = [event.time for event in events if event.time is not None]
    if len(times) < len(events):
        return events
    return [events[row] for row in np.argsort(np.array(times), kind="stable")]
