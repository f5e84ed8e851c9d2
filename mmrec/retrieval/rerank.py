"""Chooses a list out of scored candidates: the best, the varied, and not too many of one kind.

    candidates, best first ─► greedy: the largest gain among those still open ─► K places

Each gain has relevance r, the scores of the pool brought to [0, 1], on one side and variety on the
other; a strength s in [0, 1] weighs them. At s = 0 the order is that of the scores.

Legend: P candidates of the pool, best first · K list length · D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from mmrec.data.ragged import IntArray, Ragged
from mmrec.errors import UserError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Method = Literal["mmr", "dpp"]
METHODS: tuple[Method, ...] = ("mmr", "dpp")
POOL = 10
"""Candidates of the pool for each item of the list: further down, variety costs too much."""
_JITTER = 1e-6


def as_method(name: str) -> Method:
    """A method by its name.

    Raises:
        UserError: there is no such method.
    """
    for method in METHODS:
        if method == name:
            return method
    raise UserError(f"diversify by '{name}': allowed is one of {', '.join(METHODS)}")


class Gain(Protocol):
    """What each candidate would add to the places chosen so far."""

    def gains(self) -> FloatArray:
        """(P,) of each candidate."""

    def take(self, place: int) -> None:
        """A candidate was chosen."""


class MarginalRelevance:
    """Maximal marginal relevance: far from the nearest item that is chosen already.

        gain(i) = (1 - s) r(i) - s max over chosen j of sim(i, j)

    Source: Carbonell and Goldstein, 1998; their lambda is 1 - s.

    Args:
        relevance: (P,) in [0, 1].
        vectors: (P, D) unit vectors, zeros where an item has none.
        strength: s.
    """

    def __init__(self, relevance: FloatArray, vectors: FloatArray, strength: float) -> None:
        self._relevance, self._vectors, self._strength = relevance, vectors, strength
        self._nearest = np.zeros(len(relevance))

    def gains(self) -> FloatArray:
        """See `Gain.gains`."""
        return (1 - self._strength) * self._relevance - self._strength * self._nearest

    def take(self, place: int) -> None:
        """See `Gain.take`."""
        self._nearest = np.maximum(self._nearest, similarity(self._vectors, place))


class Determinant:
    """Greedy search for the likeliest set of a determinantal point process.

        gain(i) = (1 - s) r(i) + s log(det S[chosen + i] / det S[chosen])

    This is the greedy step for the kernel L = q S q with q = exp(r (1 - s) / 2s). A row of the
    Cholesky factor a choice keeps it at O(P) for each earlier choice, in place of determinants.

    Source: Chen, Zhang and Zhou, 2018, algorithm 1.

    Args:
        relevance: (P,) in [0, 1].
        vectors: (P, D) unit vectors, zeros where an item has none.
        strength: s.
    """

    def __init__(self, relevance: FloatArray, vectors: FloatArray, strength: float) -> None:
        self._relevance, self._vectors, self._strength = relevance, vectors, strength
        self._left = np.full(len(relevance), 1 + _JITTER)  # d^2: what the chosen do not explain
        self._factor = np.zeros((0, len(relevance)))  # a row a choice

    def gains(self) -> FloatArray:
        """See `Gain.gains`."""
        # copies of what is chosen have nothing left: the floor keeps their order by relevance
        log_left = np.log(np.maximum(self._left, _JITTER))
        return (1 - self._strength) * self._relevance + self._strength * log_left

    def take(self, place: int) -> None:
        """See `Gain.take`."""
        explained = self._factor[:, place] @ self._factor
        row = similarity(self._vectors, place) - explained
        row /= math.sqrt(max(self._left[place], _JITTER))
        self._factor = np.vstack([self._factor, row])
        self._left = self._left - row**2


class Limit:
    """At most so many items of one word in a list: of an artist, of a genre.

    Args:
        words: P rows of the words' places; an item of several counts for each, one of none for
            nothing.
        most: n, how many.
    """

    def __init__(self, words: Ragged, most: int) -> None:
        self._words, self._most = words, most
        self._count: dict[int, int] = {}

    def full(self, place: int) -> bool:
        """Whether one more of what the candidate is would be too many."""
        return any(self._count.get(word, 0) >= self._most for word in self._words[place].tolist())

    def take(self, place: int) -> None:
        """A candidate was chosen."""
        for word in self._words[place].tolist():
            self._count[word] = self._count.get(word, 0) + 1


def similarity(vectors: FloatArray, place: int) -> FloatArray:
    """(P,) similarity to one item, (1 + cosine) / 2; 1 to itself. It is a kernel: S of a DPP."""
    found: FloatArray = (1 + vectors @ vectors[place]) / 2
    found[place] = 1.0
    return found


def gain_of(method: Method, scores: FloatArray, vectors: FloatArray, strength: float) -> Gain:
    """The gain that a request asks for.

    Args:
        method: how variety is measured.
        scores: (P,) of the pool, best first.
        vectors: (P, D) unit vectors, zeros where an item has none.
        strength: s in [0, 1].
    """
    spread = scores[0] - scores[-1] if len(scores) else 0.0
    relevance = (scores - scores[-1]) / spread if spread > 0 else np.ones(len(scores))
    kind = MarginalRelevance if method == "mmr" else Determinant
    return kind(relevance, vectors, strength)


def choose_varied(gain: Gain, num_pool: int, k: int, limits: Sequence[Limit] = ()) -> list[int]:
    """Up to K places of the pool, in the order they are chosen; of equal gains the first.

    Args:
        gain: of the pool's candidates.
        num_pool: P.
        k: K.
        limits: that no list may exceed.
    """
    chosen: list[int] = []
    is_open = np.ones(num_pool, np.bool_)
    while len(chosen) < k and is_open.any():
        place = int(np.where(is_open, gain.gains(), -np.inf).argmax())
        is_open[place] = False
        if _may_take(place, limits):  # what is full stays full
            chosen.append(place)
            gain.take(place)
    return chosen


def choose_in_order(places: Iterable[int], k: int, limits: Sequence[Limit]) -> list[int]:
    """The first K places that no limit forbids."""
    return list(islice((place for place in places if _may_take(place, limits)), k))


def new_last(is_new: npt.NDArray[np.bool_], places: int) -> IntArray:
    """The order in which new items stand last within the first places of lists.

    Args:
        is_new: (..., K) of the items of lists as they are.
        places: P; what stands behind them stays.

    Returns:
        (..., K) where each item of the reordered lists stood.
    """
    ahead = np.arange(is_new.shape[-1]) < places
    return np.argsort(np.where(ahead, is_new, 2), axis=-1, kind="stable")


def _may_take(place: int, limits: Sequence[Limit]) -> bool:
    """Whether no limit is full; then the place counts for all of them."""
    if any(limit.full(place) for limit in limits):
        return False
    for limit in limits:
        limit.take(place)
    return True
