"""Conditions on attributes as databases read them: SQL for LanceDB, a filter for Qdrant.

Both mean what `Condition.holds` means: an item of which an attribute is not known fails what asks
for a value and passes what excludes values. Names and values come from outside, so columns have
names of their own and every value is a quoted literal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import polars as pl

from mmrec.data.ragged import Ragged
from mmrec.retrieval.attributes import ItemAttributes, Words
from mmrec.retrieval.filters import Condition

AttributeType = Literal["number", "words"]


@dataclass(frozen=True)
class AttributeColumns:
    """Columns of a database for the attributes of items.

    types: number or words, by attribute, in order.
    """

    types: Mapping[str, AttributeType]

    @classmethod
    def of(cls, attributes: pl.DataFrame | None) -> Self:
        """For a table as of `ItemIndex.add`."""
        schema = {} if attributes is None else attributes.schema
        return cls({n: "number" if t == pl.Float64() else "words" for n, t in schema.items()})

    def column(self, name: str) -> str:
        """The column of an attribute: with its name, or its place where that is no plain word."""
        plain = name.isidentifier() and name.isascii()
        return f"attribute_{name if plain else list(self.types).index(name)}"

    def table(self, attributes: pl.DataFrame) -> pl.DataFrame:
        """Attributes under the names of their columns: Float64 or List(String), null = not known.

        Args:
            attributes: as of `ItemIndex.add`.
        """
        found = []
        for name, each in self.types.items():
            value = pl.col(name)
            if each == "number":
                value = value.fill_nan(None)
            elif attributes.schema[name] == pl.String():
                value = pl.when(value.is_null()).then(None).otherwise(pl.concat_list(value))
            found.append(value.alias(self.column(name)))
        return attributes.select(found)

    def check(self, where: Iterable[Condition]) -> None:
        """Refuses what `Condition.holds` refuses.

        Raises:
            UserError: a condition on what is no attribute, or is one of another type.
        """
        nothing = Words((), Ragged.from_rows([]))
        empty = ItemAttributes(
            0,
            {name: np.zeros(0) for name, each in self.types.items() if each == "number"},
            {name: nothing for name, each in self.types.items() if each == "words"},
        )
        for condition in where:
            empty.require(condition.field, "condition")
            bounded = condition.minimum is not None or condition.maximum is not None
            # without items every word is unknown, of which `holds` would warn
            if bounded or self.types[condition.field] == "number":
                condition.holds(empty)


def sql_text(value: str) -> str:
    """A string literal: a quote is doubled, and nothing else has a meaning inside."""
    doubled = value.replace("'", "''")
    return f"'{doubled}'"


def sql_in(column: str, values: Collection[str]) -> str:
    """A column holds one of some strings."""
    return f"{column} IN ({', '.join(map(sql_text, values))})" if values else "false"


def sql_of(where: Sequence[Condition], columns: AttributeColumns) -> str | None:
    """All conditions as one SQL expression of DataFusion; None for none.

    Raises:
        UserError: as of `AttributeColumns.check`.
    """
    columns.check(where)
    parts: list[str] = []
    for condition in where:
        column = f"`{columns.column(condition.field)}`"
        number = columns.types[condition.field] == "number"
        one_of = _sql_number_in if number else _sql_words_any
        if condition.minimum is not None:
            parts.append(f"{column} >= {_sql_number(condition.minimum)}")
        if condition.maximum is not None:
            parts.append(f"{column} <= {_sql_number(condition.maximum)}")
        if condition.any_of:
            parts.append(one_of(column, condition.any_of))
        if condition.none_of:
            parts.append(f"({column} IS NULL OR NOT ({one_of(column, condition.none_of)}))")
    return " AND ".join(parts) or None


def _sql_number(value: float | str) -> str:
    return f"CAST({sql_text(repr(float(value)))} AS DOUBLE)"


def _sql_number_in(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(map(_sql_number, values))})"


def _sql_words_any(column: str, values: Iterable[str]) -> str:
    return f"array_has_any({column}, [{', '.join(map(sql_text, values))}])"


def qdrant_filter(where: Sequence[Condition], columns: AttributeColumns) -> Any:
    """All conditions as one filter of Qdrant; None for none.

    Raises:
        UserError: as of `AttributeColumns.check`.
    """
    from qdrant_client import models

    columns.check(where)
    must: list[Any] = []
    must_not: list[Any] = []

    def one_of(condition: Condition, values: Sequence[str]) -> Any:
        key = columns.column(condition.field)
        if columns.types[condition.field] == "words":
            return models.FieldCondition(key=key, match=models.MatchAny(any=list(values)))
        # Qdrant compares numbers with numbers by ranges alone
        equal = [models.Range(gte=float(each), lte=float(each)) for each in values]
        return models.Filter(should=[models.FieldCondition(key=key, range=each) for each in equal])

    for condition in where:
        if condition.minimum is not None or condition.maximum is not None:
            bounds = models.Range(gte=condition.minimum, lte=condition.maximum)
            key = columns.column(condition.field)
            must.append(models.FieldCondition(key=key, range=bounds))
        if condition.any_of:
            must.append(one_of(condition, condition.any_of))
        if condition.none_of:
            must_not.append(one_of(condition, condition.none_of))
    return models.Filter(must=must, must_not=must_not) if must or must_not else None
