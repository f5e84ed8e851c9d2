"""BM25 over documents that come and go: each is searchable at once, and gone at once.

    score(q, d) = sum over terms t of q, each as often as it stands there, of

        ln(1 + (n - n_t + 1/2) / (n_t + 1/2)) * f / (f + k1 * (1 - b + b * l_d / l))

n documents of which n_t hold t; f times t in d; l_d terms in d, l on the average. It is the form of
Lucene (Kamphuis and others, 2020), without the factor k1 + 1 that changes no order.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
K1, B = 1.2, 0.75


class Bm25:
    """Postings that grow: for each term the documents that hold it, and how often.

    A document that is removed or replaced stays in the postings as a dead row, which counts in no
    number and has no score.
    """

    def __init__(self) -> None:
        self._postings: dict[str, tuple[array[int], array[int]]] = {}
        self._lengths = array("q")
        self._keys = array("q")
        self._alive = bytearray()
        self._row_of: dict[int, int] = {}
        self._total_length = 0

    def __len__(self) -> int:
        """n, the documents that can be found."""
        return len(self._row_of)

    def add(self, key: int, terms: Iterable[str]) -> None:
        """Adds a document, or puts it in the place of that of the same key.

        Args:
            key: of the document, 0 or greater.
            terms: in any order.
        """
        self.remove(key)
        row, counts = len(self._lengths), Counter(terms)
        for term, count in counts.items():
            if term not in self._postings:
                self._postings[term] = (array("q"), array("q"))
            rows, times = self._postings[term]
            rows.append(row)
            times.append(count)
        self._lengths.append(counts.total())
        self._keys.append(key)
        self._alive.append(1)
        self._row_of[key] = row
        self._total_length += counts.total()

    def remove(self, key: int) -> None:
        """Removes a document; one that is not there is gone already."""
        row = self._row_of.pop(key, None)
        if row is not None:
            self._alive[row] = 0
            self._total_length -= self._lengths[row]

    def scores(self, terms: Iterable[str], num_keys: int) -> tuple[FloatArray, float]:
        """How well documents match a query.

        Args:
            terms: of the query.
            num_keys: above the greatest key of a document.

        Returns:
            (num_keys,) scores, 0 without a match; and the score of a document of average length
            that holds each term of the query once.
        """
        found, full = np.zeros(num_keys), 0.0
        # copies: a view would forbid that the arrays grow
        alive, keys, lengths = (np.array(each) for each in (self._alive, self._keys, self._lengths))
        usual = self._total_length / max(len(self), 1) or 1.0
        for term, times in Counter(terms).items():
            rows, counts = (np.array(each) for each in self._postings.get(term, ((), ())))
            kept = alive[rows.astype(np.int64)].astype(np.bool_)
            rows, counts = rows[kept].astype(np.int64), counts[kept]
            rarity = math.log1p((len(self) - len(rows) + 0.5) / (len(rows) + 0.5))
            full += times * rarity / (1 + K1)
            norm = K1 * (1 - B + B * lengths[rows] / usual)
            found[keys[rows]] += times * rarity * counts / (counts + norm)
        return found, full
