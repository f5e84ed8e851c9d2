"""Users to show with pictures: six taken evenly, and those where the model did best and worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmrec.evaluation.metrics import FloatArray
from mmrec.evaluation.protocol import Cases
from mmrec.loaded import LoadedRun

NUM_STRIPS = 6
NUM_MET = 12
NUM_EXTREMES = 2  # best and worst cases shown of each slice
STRIP_LENGTH = 8


@dataclass(frozen=True)
class UserStrip:
    """What one user met (oldest to newest), is recommended, and which cold items score highest.

    Attributes:
        user_id: whose.
        met: item_index of the newest events, of `num_met`.
        recommended: item_index, best first.
        cold: the same of cold items; those of a case chosen by its result are not given.
        targets: the items really met next, marked where they are shown.
        num_met: events of the history; None: those of `met`.
        note: which case it is, where one was chosen by its result.
    """

    user_id: str
    met: Sequence[int]
    recommended: Sequence[int]
    cold: Sequence[int]
    targets: Sequence[int] = ()
    num_met: int | None = None
    note: str = ""


def even_strips(loaded: LoadedRun, cases: Cases, users: Tensor, items: Tensor) -> list[UserStrip]:
    """What six users met, are recommended, and which cold items score highest for them.

    Users are taken evenly from those with the most kinds of cases, not chosen by success.
    """
    rows_of: dict[int, list[int]] = {}
    for row, user in enumerate(cases.user_index.tolist()):
        rows_of.setdefault(user, []).append(row)
    most = max(len(rows) for rows in rows_of.values())
    pool = [rows for rows in rows_of.values() if len(rows) == most]
    chosen = [pool[i] for i in np.linspace(0, len(pool) - 1, NUM_STRIPS).astype(int)]
    # the warm case comes first and has the longest history
    return [_strip(loaded, cases, users, items, rows) for rows in chosen]


def extreme_strips(
    loaded: LoadedRun, cases: Cases, users: Tensor, items: Tensor, rank: FloatArray
) -> tuple[list[UserStrip], list[UserStrip]]:
    """The cases of each slice whose best target stands highest, and those where it stands lowest.

    Of cases with equal ranks, of which there are many at the top, those with the longest histories
    are taken: they show most of what the model went by.

    Args:
        loaded: the run.
        cases: who was asked what.
        users: (U, D + 1) of the cases.
        items: (C, D + 1) of the candidates.
        rank: (T,) of our model's targets.

    Returns:
        Best and worst cases, warm ones first.
    """
    first = np.minimum.reduceat(rank, cases.targets.offsets[:-1])
    best: list[UserStrip] = []
    worst: list[UserStrip] = []
    for slice_name in dict.fromkeys(cases.slice):
        rows = np.flatnonzero(np.array(cases.slice, dtype=object) == slice_name)
        longest = -cases.history.lengths[rows]
        for found, key in ((best, first[rows]), (worst, -first[rows])):
            for row in rows[np.lexsort((longest, key))][:NUM_EXTREMES].tolist():
                note = f"{slice_name} target at rank {first[row]:,.4g} of {items.shape[0]:,}"
                found.append(_strip(loaded, cases, users, items, [row], note))
    return best, worst


def _strip(
    loaded: LoadedRun,
    cases: Cases,
    users: Tensor,
    items: Tensor,
    rows: Sequence[int],
    note: str = "",
) -> UserStrip:
    """The strip of the first of a user's cases, with the targets of all that are given."""
    assert loaded.data is not None
    first = rows[0]
    score = (users[first] @ items.T).cpu().numpy()
    place = np.searchsorted(cases.candidates, cases.seen[first])
    place = np.minimum(place, len(cases.candidates) - 1)
    score[place[cases.candidates[place] == cases.seen[first]]] = -np.inf
    unavailable = cases.unavailable(np.array([first]), 0, len(score))
    if unavailable is not None:
        score[unavailable[0]] = -np.inf
    order = [i for i in np.argsort(-score, kind="stable") if np.isfinite(score[i])]
    cold = [i for i in order if cases.candidate_is_cold[i]]
    return UserStrip(
        user_id=loaded.data.user_ids[int(cases.user_index[first])],
        met=cases.history[first][-NUM_MET:].tolist(),
        recommended=[int(cases.candidates[i]) for i in order[:STRIP_LENGTH]],
        cold=[] if note else [int(cases.candidates[i]) for i in cold[:STRIP_LENGTH]],
        targets=[int(item) for row in rows for item in cases.targets[row]],
        num_met=len(cases.history[first]),
        note=note,
    )
