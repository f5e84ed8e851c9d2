"""What the evaluated data are like, as far as it bounds what their figures can show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.shards import UNKNOWN_TIME, PreparedData
from mmrec.evaluation.protocol import Cases


@dataclass(frozen=True)
class DataFacts:
    """Facts of one evaluation.

    Attributes:
        num_users: in the catalogue.
        num_users_asked: with at least one target of this evaluation.
        num_candidates: items that are ranked.
        num_candidates_met: of these, how many are anybody's target.
        median_history: events that the median case is asked with.
        ordered_by: `order` where the log has a column of order, else `time`.
        tied_share: share of events, a user's first apart, with the same time as the one before, of
            those with known times; None where there are none.
        first_time: Unix seconds of the earliest event of a history; None where not known.
        last_time: of the latest.
    """

    num_users: int
    num_users_asked: int
    num_candidates: int
    num_candidates_met: int
    median_history: float
    ordered_by: str
    tied_share: float | None
    first_time: int | None
    last_time: int | None


def data_facts(data: PreparedData, cases: Cases) -> DataFacts:
    """Counts what the report says of the data.

    Args:
        data: the prepared folder.
        cases: of the evaluation; of a user's several histories the longest counts.
    """
    tied, known, first, last = _times(cases)
    return DataFacts(
        num_users=len(data.user_ids),
        num_users_asked=len(np.unique(cases.user_index)),
        num_candidates=len(cases.candidates),
        num_candidates_met=len(np.unique(cases.targets.values)),
        median_history=float(np.median(cases.history.lengths)),
        ordered_by="time" if data.catalogue.interactions.order is None else "order",
        tied_share=tied / known if known else None,
        first_time=first,
        last_time=last,
    )


def _times(cases: Cases) -> tuple[int, int, int | None, int | None]:
    """Tied events, events that could be, earliest and latest time."""
    if cases.history_time is None:
        return 0, 0, None, None
    order = np.lexsort((cases.history_time.lengths, cases.user_index))
    is_last = np.append(np.diff(cases.user_index[order]) != 0, True)
    longest = cases.history_time.take(order[is_last])
    times, row = longest.values, longest.row_of_value
    is_known = times != UNKNOWN_TIME
    pairs = (row[1:] == row[:-1]) & is_known[1:] & is_known[:-1]
    tied = pairs & (times[1:] == times[:-1])
    spanned = times[is_known]
    if not len(spanned):
        return 0, 0, None, None
    return int(tied.sum()), int(pairs.sum()), int(spanned.min()), int(spanned.max())
