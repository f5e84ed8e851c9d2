"""Whether what is asked still looks like the users that the model knows.

    stored users ─ learn ─► how popular their items are, how high their best score is ─┐
    requests ─ saw ─► the last WINDOW of them, of an hour at most ─────────────────────┴─► figures

A user who is known by his id brings the history that the model knows; what drifts are histories
that come with requests, what users did since the export, and who it is that asks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mmrec.drift.two_samples import FloatArray, Gap, stability_gap
from mmrec.retrieval.lists import Recommendation
from mmrec.retrieval.recommend import RankedRecommendation, recommend_next
from mmrec.retrieval.retriever import Asked, Retriever

WINDOW = 2_000
WINDOW_S = 3_600.0
FEW = 200
"""Requests below which nothing is said."""
NUM_USERS = 200
"""Stored users that are looked at, evenly spread."""
UNKNOWN_LIMIT = 0.2
"""Share of the items of histories; no user of a log has any."""
_NUM_CLASSES = 10


@dataclass(frozen=True)
class _Usual:
    """What stored users are like.

    Attributes:
        model_hash: of the model that was asked.
        counts: (N,) training events of each item.
        class_edges: of the classes of popularity.
        classes: users in each class; one is in several in parts.
        score_edges: of the best score of a list.
        scores: users between these.
    """

    model_hash: str
    counts: npt.NDArray[np.int64]
    class_edges: FloatArray
    classes: FloatArray
    score_edges: FloatArray
    scores: FloatArray


@dataclass(frozen=True)
class _Seen:
    """What is kept of a request: the classes of its history in parts, its best score."""

    at: float
    classes: FloatArray | None
    score: float | None
    num_items: int
    num_unknown: int


@dataclass
class _Window:
    usual: _Usual
    seen: deque[_Seen] = field(default_factory=lambda: deque(maxlen=WINDOW))


class AskedDrift:
    """Compares the last requests with the users that the model knows.

    `saw` is called by the thread that answers, the rest by any other.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window: _Window | None = None

    @property
    def model_hash(self) -> str | None:
        """Of the model whose users are known here."""
        return None if self._window is None else self._window.usual.model_hash

    def learn(self, retriever: Retriever) -> None:
        """Looks at stored users, and forgets the requests so far: a score belongs to its model.

        Args:
            retriever: as it was loaded; nothing else changes it meanwhile.
        """
        num_users = len(retriever.users.user_ids)
        rows = np.unique(np.linspace(0, num_users - 1, min(NUM_USERS, num_users)).astype(int))
        users = [each for each in map(retriever.stored_user, rows.tolist()) if len(each.history)]
        met = [retriever.counts[each.history] for each in users]
        class_edges = _edges(np.concatenate(met)) if met else np.zeros(0)
        lists = [recommend_next(retriever, each, 1) for each in users]
        best = np.array([found[0].score for found in lists if _tells(found)])
        score_edges = _edges(best)
        self._window = _Window(
            _Usual(
                model_hash=retriever.model_hash,
                counts=retriever.counts,
                class_edges=class_edges,
                classes=sum((_parts(each, class_edges) for each in met), _none(class_edges)),
                score_edges=score_edges,
                scores=_histogram(best, score_edges),
            )
        )

    def saw(
        self, model_hash: str, asked: Asked, found: Sequence[Recommendation], *, plain: bool
    ) -> None:
        """Takes up a request.

        Args:
            model_hash: of the model that answered; only that which was learnt is looked at.
            asked: whose list it is.
            found: his list.
            plain: nothing is wished for, so that its scores may be compared.
        """
        window = self._window
        if window is None or window.usual.model_hash != model_hash:
            return
        usual, classes = window.usual, None
        if len(asked.history):
            counts = np.zeros(len(asked.history), np.int64)
            known = asked.history < len(usual.counts)  # the others were added since
            counts[known] = usual.counts[asked.history[known]]
            classes = _parts(counts, usual.class_edges)
        score = found[0].score if plain and _tells(found) else None
        num_items = len(asked.history) + asked.num_unknown
        window.seen.append(_Seen(self._clock(), classes, score, num_items, asked.num_unknown))

    def figures(self) -> Mapping[str, Gap]:
        """The gap of each part of which enough was seen.

        Returns:
            popularity_drift: stability index of the popularity of the items in histories.
            score_drift: that of the best score of lists.
            unknown_items: share of the items of histories that the model does not know.
        """
        window = self._window
        if window is None:
            return {}
        since, usual = self._clock() - WINDOW_S, window.usual
        seen = [each for each in tuple(window.seen) if each.at >= since]
        found: dict[str, Gap] = {}
        classes = [each.classes for each in seen if each.classes is not None]
        if len(classes) >= FEW:
            found["popularity_drift"] = _gap(usual.classes, np.sum(classes, axis=0), len(classes))
        scores = np.array([each.score for each in seen if each.score is not None])
        if len(scores) >= FEW:
            new = _histogram(scores, usual.score_edges)
            found["score_drift"] = _gap(usual.scores, new, len(scores))
        num_items = sum(each.num_items for each in seen)
        if len(seen) >= FEW and num_items:
            share = sum(each.num_unknown for each in seen) / num_items
            found["unknown_items"] = Gap(share, UNKNOWN_LIMIT)
        return found


def _tells(found: Sequence[Recommendation]) -> bool:
    """Whether a list's scores are the model's on a history; a second stage has its own."""
    is_ranked = bool(found) and isinstance(found[0], RankedRecommendation)
    return bool(found) and found[0].basis == "history" and not is_ranked


def _gap(usual: FloatArray, new: FloatArray, num_new: int) -> Gap:
    return stability_gap(usual, new, num_earlier=max(int(usual.sum()), 1), num_new=num_new)


def _edges(values: FloatArray | npt.NDArray[np.int64]) -> FloatArray:
    """Edges between classes that hold about equal parts of some values."""
    if not len(values):
        return np.zeros(0)
    return np.unique(np.quantile(values, np.arange(1, _NUM_CLASSES) / _NUM_CLASSES))


def _histogram(values: FloatArray, edges: FloatArray) -> FloatArray:
    return np.bincount(np.digitize(values, edges), minlength=len(edges) + 1).astype(np.float64)


def _none(edges: FloatArray) -> FloatArray:
    return np.zeros(len(edges) + 2)


def _parts(counts: npt.NDArray[np.int64], edges: FloatArray) -> FloatArray:
    """What part of a history each class has; the last one is that of items without events."""
    is_met = counts > 0
    met = _histogram(counts[is_met].astype(np.float64), edges)
    return np.append(met, (~is_met).sum()) / len(counts)
