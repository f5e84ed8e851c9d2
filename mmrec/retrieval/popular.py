"""Popular items as of an instant: events counted alike, within a window, or fading with their age.

    histories ─► EventTimes ─► weight of each event at an instant ─► (N,) popularity

Without times in the log, or where nothing falls within the window, the training events are counted.

Legend: N items of the catalogue · E events of the log.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_prep.shards import UNKNOWN_TIME
from mmrec.data.ragged import IntArray
from mmrec.errors import UserError

if TYPE_CHECKING:
    from mmrec.retrieval.known import Users
    from mmrec.retrieval.retriever import Retriever

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Trend:
    """How much an event counts by its age; of both parts both count.

    Attributes:
        window_hours: events of the last hours alone; None: all of the past.
        half_life_hours: time by which an event counts half of a newer one; None: all count alike.

    Raises:
        UserError: a number is not above 0.
    """

    window_hours: float | None = None
    half_life_hours: float | None = None

    def __post_init__(self) -> None:
        for what, hours in (("window", self.window_hours), ("half-life", self.half_life_hours)):
            if hours is not None and not (hours > 0 and math.isfinite(hours)):
                raise UserError(f"the {what} of popularity is {hours:g} hours: give one above 0")

    def weights(self, age_s: FloatArray) -> FloatArray:
        """(E,) what events of some age, in seconds, count; 0 of those that are yet to come.

        With a half-life the newest of those that count has 1: however old a log is, its order is
        that of its last days.
        """
        counted = age_s >= 0
        if self.window_hours is not None:
            counted &= age_s <= HOUR_S * self.window_hours
        weights = counted.astype(np.float64)
        if self.half_life_hours is not None and counted.any():
            behind_s = age_s[counted] - age_s[counted].min()
            weights[counted] = 0.5 ** (behind_s / (HOUR_S * self.half_life_hours))
        return weights


@dataclass(frozen=True)
class EventTimes:
    """When items were met: the events of the log whose time is known.

    Attributes:
        item_index: (E,).
        time: (E,) int64 Unix seconds.
    """

    item_index: IntArray
    time: IntArray


def read_event_times(users: Users) -> EventTimes:
    """One pass over all histories."""
    nothing = np.zeros(0, np.int64)
    items, times = [nothing], [nothing]
    for row in range(len(users.user_ids)):
        history = users.complete(row)
        if history.time is not None:
            known = history.time != UNKNOWN_TIME
            items.append(history.item_index[known])
            times.append(history.time[known])
    return EventTimes(np.concatenate(items), np.concatenate(times))


def popularity(retriever: Retriever, now: float, trend: Trend | None = None) -> FloatArray:
    """(N,) how popular each item is; without a trend, its training events.

    Args:
        retriever: the model and its log.
        now: Unix seconds that ages are counted from; later events do not count.
        trend: how much an event counts by its age; None: no time is asked.
    """
    counts = retriever.counts.astype(np.float64)
    if trend is None:
        return counts
    log = retriever.event_times
    if not len(log.time):
        logger.warning("no event has a known time: popularity counts training events, of any age")
        return counts
    weights = trend.weights(now - log.time.astype(np.float64))
    if not weights.any():
        first, last = (int(each) for each in (log.time.min(), log.time.max()))
        logger.warning(
            "nothing was met in the window asked for; the log reaches from %s to %s: popularity "
            "counts training events, of any age",
            datetime.fromtimestamp(first, UTC).isoformat(),
            datetime.fromtimestamp(last, UTC).isoformat(),
        )
        return counts
    return np.bincount(log.item_index, weights, minlength=len(counts)).astype(np.float64)
