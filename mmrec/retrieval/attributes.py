"""Attributes of all items as typed columns: what conditions, wishes and explanations ask about.

    records of the prepared folder ─┐
                                    ├─► ItemAttributes ─► numbers (N,) · words of each item
    attributes.parquet of a bundle ─┘

Legend: N items of the catalogue · V words of one attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_prep.catalogue import AttributeSpec
from mmrec.data.ragged import IntArray, Ragged
from mmrec.errors import UserError

Numbers = npt.NDArray[np.float64]
_COLUMN_TYPES = {"number": pl.Float64(), "category": pl.String(), "set": pl.List(pl.String)}


@dataclass(frozen=True)
class Words:
    """The words that one attribute has for each of N items.

    Attributes:
        words: V words, in the order of the alphabet.
        rows: N rows of places in `words`; a category has one at most, and an item of which nothing
            is known has none.
    """

    words: tuple[str, ...]
    rows: Ragged

    @cached_property
    def place(self) -> dict[str, int]:
        """Place of each word."""
        return {word: place for place, word in enumerate(self.words)}

    @cached_property
    def _item_of(self) -> IntArray:
        return self.rows.row_of_value

    def any_of(self, wanted: Iterable[str]) -> npt.NDArray[np.bool_]:
        """(N,) bool: the item has at least one of some words; words of no item are nobody's."""
        is_wanted = np.zeros(len(self.words), np.bool_)
        is_wanted[[self.place[word] for word in wanted if word in self.place]] = True
        found = np.zeros(len(self.rows), np.bool_)
        found[self._item_of[is_wanted[self.rows.values]]] = True
        return found

    def of(self, item_index: int) -> list[str]:
        """The words of one item."""
        return [self.words[place] for place in self.rows[item_index]]


@dataclass(frozen=True)
class ItemAttributes:
    """What the catalogue's attributes say of N items.

    Attributes:
        num_items: N.
        numbers: by attribute of type number, (N,) float64, NaN where not known.
        words: by attribute of type category or set.
    """

    num_items: int
    numbers: Mapping[str, Numbers]
    words: Mapping[str, Words]

    @classmethod
    def of(
        cls, items: Sequence[Mapping[str, Any]], specs: Mapping[str, AttributeSpec]
    ) -> ItemAttributes:
        """Of the attributes of each item, as `prepare` typed them; absent is not known.

        Args:
            items: attributes by name, an item each.
            specs: of the catalogue file.
        """
        numbers, words = {}, {}
        for name, spec in specs.items():
            values = [each.get(name) for each in items]
            if spec.type == "number":
                numbers[name] = np.array([np.nan if v is None else v for v in values], np.float64)
            else:
                words[name] = _words([[v] if isinstance(v, str) else v or [] for v in values])
        return cls(len(items), numbers, words)

    @classmethod
    def of_table(cls, table: pl.DataFrame) -> ItemAttributes:
        """Of what `table` gave, kept as a file.

        Args:
            table: a row an item, a column an attribute.
        """
        numbers, words = {}, {}
        for name in table.columns:
            if table.schema[name] == pl.Float64():
                numbers[name] = table[name].fill_null(np.nan).to_numpy()
            else:
                values = table[name].to_list()
                words[name] = _words([[v] if isinstance(v, str) else v or [] for v in values])
        return cls(table.height, numbers, words)

    def table(self, specs: Mapping[str, AttributeSpec]) -> pl.DataFrame:
        """A row an item and a typed column an attribute, null where nothing is known.

        Args:
            specs: of the catalogue file.
        """
        types = {name: _COLUMN_TYPES[spec.type] for name, spec in specs.items()}
        columns: dict[str, Any] = {}
        for name, spec in specs.items():
            if spec.type == "number":
                numbers = self.numbers[name].tolist()
                columns[name] = [None if number != number else number for number in numbers]
            else:
                rows = [self.words[name].of(row) for row in range(self.num_items)]
                single = spec.type == "category"
                columns[name] = [(row[0] if single else row) if row else None for row in rows]
        return pl.DataFrame(columns, schema=types)

    @property
    def names(self) -> list[str]:
        """All attributes, in the order of the alphabet."""
        return sorted([*self.numbers, *self.words])

    def require(self, name: str, asker: str) -> None:
        """Refuses an attribute that the catalogue does not have.

        Args:
            name: of an attribute.
            asker: what asks for it, for the message.

        Raises:
            UserError: names the attributes that there are.
        """
        if name not in self.numbers and name not in self.words:
            raise UserError(
                f"{asker}: '{name}' is no attribute of items; the catalogue has "
                f"{', '.join(self.names) or 'none: name some under items.attributes'}"
            )

    def of_item(self, item_index: int) -> dict[str, float | list[str]]:
        """What is known of one item, by attribute."""
        found: dict[str, float | list[str]] = {}
        for name in self.names:
            if name in self.numbers:
                number = float(self.numbers[name][item_index])
                if number == number:
                    found[name] = number
            elif words := self.words[name].of(item_index):
                found[name] = words
        return found


def _words(rows: Sequence[Sequence[str]]) -> Words:
    """Words of each item as places; a word that an item names twice counts once."""
    words = tuple(sorted({word for row in rows for word in row}))
    place = {word: number for number, word in enumerate(words)}
    return Words(words, Ragged.from_rows([[place[w] for w in dict.fromkeys(row)] for row in rows]))
