"""Which row an item id has, and which id a row: strings at a few bytes each beside their text.

A dictionary of a million ids takes 150 MB, a third of their vectors of 128 numbers. Here ids lie in
one Arrow column and are found through their sorted hashes, at 12 bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mmrec.retrieval.indexes.rows import IntArray

_BLOCK = 65_536


class ItemIds:
    """Ids by row. An id may have several rows, of which the last counts.

    Args:
        item_ids: (N) strings.
    """

    def __init__(self, item_ids: Sequence[str] | pa.Array) -> None:
        column = item_ids if isinstance(item_ids, pa.Array) else pa.array(item_ids, pa.string())
        self._ids = column.cast(pa.large_string())
        hashes = np.empty(len(self._ids), np.int64)
        for start in range(0, len(hashes), _BLOCK):  # a million strings at once are 60 MB
            part = slice(start, start + _BLOCK)
            hashes[part] = _hashes(self._ids[part].to_pylist())
        # Stable: of equal hashes, an id's later row comes later.
        self._order = np.argsort(hashes, kind="stable").astype(np.int32)
        self._hashes = hashes[self._order]
        # Ids that were added since, which are few: an index is written and read, or compacted.
        self._new: dict[str, int] = {}
        self._new_ids: list[str] = []

    def __len__(self) -> int:
        return len(self._ids) + len(self._new_ids)

    def add(self, item_ids: Sequence[str]) -> None:
        """Gives the next rows to ids."""
        for item_id in item_ids:
            self._new[item_id] = len(self)
            self._new_ids.append(item_id)

    def rows(self, item_ids: Sequence[str]) -> IntArray:
        """(n,) the last row of each id, -1 for those that are not known."""
        wanted = list(item_ids)
        hashes = _hashes(wanted)
        ends = np.searchsorted(self._hashes, hashes, side="right")
        found = np.full(len(wanted), -1, np.int64)
        for place, item_id in enumerate(wanted):
            if item_id in self._new:
                found[place] = self._new[item_id]
                continue
            at = int(ends[place]) - 1
            while at >= 0 and self._hashes[at] == hashes[place]:
                row = int(self._order[at])
                if self._ids[row].as_py() == item_id:
                    found[place] = row
                    break
                at -= 1  # another id of the same hash
        return found

    def ids(self, rows: IntArray) -> list[str | None]:
        """The id of each row, None for -1."""
        old = len(self._ids)
        places = pa.array(np.where((rows >= 0) & (rows < old), rows, 0))
        known = self._ids.take(places).to_pylist() if old else [None] * len(rows)
        return [
            None if row < 0 else self._new_ids[row - old] if row >= old else item_id
            for row, item_id in zip(rows.tolist(), known, strict=True)
        ]

    def column(self) -> pa.Array:
        """All ids by row."""
        return pa.concat_arrays([self._ids, pa.array(self._new_ids, pa.large_string())])


def _hashes(item_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Python's own, which differ from process to process: they are never written."""
    return np.fromiter(map(hash, item_ids), np.int64, len(item_ids))
