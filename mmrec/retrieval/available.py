"""When items may be listed, and how the old ones fade: `items.available` of the catalogue file.

The odds of an item against a new one halve with every half-life of its age, so from its score, in
units of cosine, tau * ln 2 * age / half-life is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError

ALWAYS, FOR_EVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Available:
    """The span of each of N items.

    Attributes:
        start: (N,) int64 Unix seconds, the first instant; ALWAYS where none is known.
        until: (N,) int64 Unix seconds, the first instant after the last; FOR_EVER for none.
    """

    start: IntArray
    until: IntArray

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Available:
        """Of what `prepare` wrote of each item, in order."""
        spans = [record.get("available", {}) for record in records]
        start = [ALWAYS if span.get("from") is None else span["from"] for span in spans]
        until = [FOR_EVER if span.get("until") is None else span["until"] for span in spans]
        return cls(np.array(start, dtype=np.int64), np.array(until, dtype=np.int64))

    def at(self, time: float) -> npt.NDArray[np.bool_]:
        """(N,) True = may be listed at an instant in Unix seconds."""
        found: npt.NDArray[np.bool_] = (self.start <= time) & (time < self.until)
        return found

    def half_lives(self, time: float, half_life_hours: float) -> npt.NDArray[np.float64]:
        """(N,) age at an instant in half-lives; 0 where it is not known, or still to come.

        Raises:
            UserError: the half-life is not above 0.
        """
        if not (half_life_hours > 0 and math.isfinite(half_life_hours)):
            raise UserError(f"the half-life is {half_life_hours:g} hours: give a number above 0")
        known = self.start != ALWAYS
        age_s = np.maximum(time - np.where(known, self.start, 0).astype(np.float64), 0)
        return np.where(known, age_s / (HOUR_S * half_life_hours), 0.0)
