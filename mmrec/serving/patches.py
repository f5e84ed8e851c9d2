"""Attributes of items that change while the service runs, such as a price.

    {"price": 9.5} ─ typed by the catalogue ─► database ─ every worker ─► Patches ─► ItemAttributes

What lists ask of items counts them at once: conditions, wishes, limits. Vectors stay what the
model made of the item when it was encoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from data_prep.build_items import convert_attributes
from data_prep.catalogue import AttributeSpec
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.serving.faults import Fault

_VALUES: Mapping[str, tuple[type, ...]] = {
    "number": (int, float),
    "category": (str,),
    "set": (str, list),
}


def typed_patch(
    given: Mapping[str, Any], specs: Mapping[str, AttributeSpec]
) -> dict[str, float | str | list[str] | None]:
    """Attributes as the catalogue types them; None: not known any more.

    Raises:
        Fault: an attribute is none of the catalogue's, or a value is not of its type.
    """
    found: dict[str, float | str | list[str] | None] = {}
    for name, value in given.items():
        spec, field = specs.get(name), f"attributes.{name[:60]}"
        if spec is None:
            allowed = ", ".join(specs) or "none"
            message = f"{name[:60]!r} is no attribute of items, allowed are {allowed}"
            raise Fault(422, "unknown_field", message, field=field)
        if value is not None and not isinstance(value, _VALUES[spec.type]):
            raise Fault(422, "invalid", f"{field} is {value!r:.60}: not a {spec.type}", field=field)
        found[name] = convert_attributes({name: value}, {name: spec}).get(name)
    return found


class Patches:
    """What has been told of items since they were written, by row."""

    def __init__(self) -> None:
        self._values: dict[str, dict[int, Any]] = {}

    def put(self, row: int, attributes: Mapping[str, Any]) -> None:
        """Takes the newest values of some attributes of an item."""
        for name, value in attributes.items():
            self._values.setdefault(name, {})[row] = value

    def over(
        self, attributes: ItemAttributes, specs: Mapping[str, AttributeSpec]
    ) -> ItemAttributes:
        """The attributes of all items with what was told since.

        Args:
            attributes: of N items; left as they are.
            specs: of the catalogue file; what it does not name is passed over, as a model of an
                earlier catalogue does not know it.
        """
        numbers, words = dict(attributes.numbers), dict(attributes.words)
        for name, values in self._values.items():
            if name in numbers:
                numbers[name] = numbers[name].copy()
                told = [np.nan if each is None else each for each in values.values()]
                numbers[name][list(values)] = told
            elif name in words:
                spec = {name: specs[name]}
                column = ItemAttributes(attributes.num_items, {}, words).table(spec)[name].to_list()
                for row, value in values.items():
                    column[row] = value
                kind = pl.List(pl.String) if specs[name].type == "set" else pl.String
                table = pl.DataFrame({name: pl.Series(column, dtype=kind)})
                words[name] = ItemAttributes.of_table(table).words[name]
        return replace(attributes, numbers=numbers, words=words)
