"""What was set aside and why: one JSON line each, counted by reason, with a limit of 5 %.

A line has `kind` (item, medium, interaction, user), `place` (table and row, column), `id`,
`reason`, and `path` for a medium. What follows the first colon of a reason is detail and is not
counted apart.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import IO, Any, Literal

from data_prep.errors import DataError
from data_prep.shard_writer import compact_json

MAX_SHARE = 0.05
"""Of items, media or interactions; more points at a wrong path or table, not at a few bad files."""

QuarantineKind = Literal["item", "medium", "interaction", "user"]


class Quarantine:
    """Appends to one file; use as a context."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115
        self._example: dict[str, str] = {}
        self.counts: Counter[tuple[str, str]] = Counter()

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(
        self, kind: QuarantineKind, *, place: str, id: str, reason: str, **details: Any
    ) -> None:
        """Set one thing aside."""
        record = {"kind": kind, "place": place, "id": id, "reason": reason, **details}
        self._file.write(compact_json(record) + b"\n")
        self.counts[kind, reason.partition(":")[0]] += 1
        shown = details.get("path", id)
        self._example.setdefault(kind, f"{place}: {reason} ({shown})")

    def num(self, kind: QuarantineKind) -> int:
        """How many of a kind were set aside."""
        return sum(count for (of, _), count in self.counts.items() if of == kind)

    def by_reason(self) -> dict[str, dict[str, int]]:
        """Counts by kind and reason, in order of the alphabet."""
        table: dict[str, dict[str, int]] = {}
        for (kind, reason), count in sorted(self.counts.items()):
            table.setdefault(kind, {})[reason] = count
        return table

    def check_share(self, kind: QuarantineKind, total: int) -> None:
        """Stop where more than 5 % of a kind were set aside.

        Users with too few events are not held against this limit: they are no fault of the data.

        Raises:
            DataError: names the share and the first of them.
        """
        count = self.num(kind)
        if count > MAX_SHARE * total:
            noun = {"medium": "media"}.get(kind, f"{kind}s")
            raise DataError(
                f"{count} of {total} {noun} cannot be used ({count / total:.1%}, at most "
                f"{MAX_SHARE:.0%} are set aside); the first: {self._example[kind]}; "
                "check the paths and columns of the catalogue file"
            )
