"""Hard conditions on attributes of items: "price<=20", "artist!=X", "genre=rock|pop".

    text or JSON ─► Condition ─┐
                               ├─► (N,) bool, True = may be listed
    ItemAttributes ────────────┘

An item of which an attribute is not known fails a condition that asks for a value, and passes one
that excludes values.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmrec.errors import UserError
from mmrec.retrieval.attributes import ItemAttributes, Words

logger = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
_WRITTEN = re.compile(r"\s*(?P<field>[^<>=!]+?)\s*(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*")
_HOW = "write FIELD<=NUMBER, FIELD>=NUMBER, FIELD=VALUE|VALUE or FIELD!=VALUE|VALUE"
_KEYS = ("field", "minimum", "maximum", "any_of", "none_of")


@dataclass(frozen=True)
class Condition:
    """What every listed item must fulfil; of several parts all count.

    Attributes:
        field: an attribute of items.
        minimum: of a number, inclusive.
        maximum: of a number, inclusive.
        any_of: the item has at least one of these values.
        none_of: the item has none of these values.

    Raises:
        UserError: nothing is asked, or a bound is no finite number.
    """

    field: str
    minimum: float | None = None
    maximum: float | None = None
    any_of: tuple[str, ...] = ()
    none_of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = [each for each in (self.minimum, self.maximum) if each is not None]
        if not (bounds or self.any_of or self.none_of):
            raise UserError(f"condition on '{self.field}': it asks for nothing; {_HOW}")
        if not all(math.isfinite(each) for each in bounds):
            raise UserError(f"condition on '{self.field}': {bounds} are no finite numbers")

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads a condition as it is written on the command line.

        `<` and `>` leave the number itself out. A value that holds one of the signs, or `|`, goes
        by JSON alone.

        Raises:
            UserError: it is not of a known form.
        """
        found = _WRITTEN.fullmatch(text)
        if found is None or not found["value"]:
            raise UserError(f"condition '{text}' cannot be read: {_HOW}")
        field, sign, value = found["field"], found["sign"], found["value"]
        if sign in ("=", "!="):
            values = tuple(part.strip() for part in value.split("|") if part.strip())
            if sign == "=":
                return cls(field, any_of=values)
            return cls(field, none_of=values)
        number = _number(field, value)
        if sign in ("<", ">"):
            number = math.nextafter(number, -math.inf if sign == "<" else math.inf)
        return cls(field, maximum=number) if "<" in sign else cls(field, minimum=number)

    @classmethod
    def from_json(cls, given: Any) -> Condition:
        """Reads {"field": "price", "maximum": 20}, the attributes of the class as keys.

        Raises:
            UserError: a key is not known, or a value is of a wrong type.
        """
        if not isinstance(given, Mapping) or not isinstance(given.get("field"), str):
            raise UserError(f"condition {given!r} is no object with a field; keys are {_KEYS_TEXT}")
        field = given["field"]
        stray = sorted(given.keys() - set(_KEYS))
        if stray:
            raise UserError(
                f"condition on '{field}': key '{stray[0]}' is not known; keys are {_KEYS_TEXT}"
            )
        return cls(
            field,
            minimum=_bound(field, "minimum", given.get("minimum")),
            maximum=_bound(field, "maximum", given.get("maximum")),
            any_of=_values(field, "any_of", given.get("any_of")),
            none_of=_values(field, "none_of", given.get("none_of")),
        )

    def holds(self, attributes: ItemAttributes) -> BoolArray:
        """(N,) bool: the item fulfils the condition.

        Raises:
            UserError: the catalogue has no such attribute, or it is of another type.
        """
        attributes.require(self.field, "condition")
        if self.field in attributes.numbers:
            return self._holds_of_numbers(attributes.numbers[self.field])
        if self.minimum is not None or self.maximum is not None:
            raise UserError(
                f"condition on '{self.field}': it has words, no numbers, so no least or greatest; "
                f"ask for {self.field}=VALUE or {self.field}!=VALUE"
            )
        words = attributes.words[self.field]
        self._tell_of_unknown(words)
        held = ~words.any_of(self.none_of)
        return held & words.any_of(self.any_of) if self.any_of else held

    def _holds_of_numbers(self, numbers: npt.NDArray[np.float64]) -> BoolArray:
        none_of = [_number(self.field, value) for value in self.none_of]
        held: BoolArray = ~np.isin(numbers, none_of)
        if self.any_of:
            held &= np.isin(numbers, [_number(self.field, value) for value in self.any_of])
        if self.minimum is not None:
            held &= numbers >= self.minimum  # False of NaN
        if self.maximum is not None:
            held &= numbers <= self.maximum
        return held

    def _tell_of_unknown(self, words: Words) -> None:
        """A word that no item has is more often a slip than a wish."""
        for value in (*self.any_of, *self.none_of):
            if value not in words.place:
                near = difflib.get_close_matches(value, words.words, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                logger.warning("no item has %s '%s'%s", self.field, value, hint)


def all_hold(conditions: Iterable[Condition], attributes: ItemAttributes) -> BoolArray:
    """(N,) bool: the item fulfils every condition.

    Raises:
        UserError: as `Condition.holds`.
    """
    held = np.ones(attributes.num_items, np.bool_)
    for condition in conditions:
        held &= condition.holds(attributes)
    return held


_KEYS_TEXT = ", ".join(_KEYS)


def _number(field: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"condition on '{field}': '{value}' is no number")
    return number


def _bound(field: str, name: str, given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise UserError(f"condition on '{field}': {name} is {given!r}, give a number")
    try:
        return float(given)
    except OverflowError:
        raise UserError(f"condition on '{field}': {name} is beyond all numbers") from None


def _values(field: str, name: str, given: Any) -> tuple[str, ...]:
    if given is None:
        return ()
    if (
        not isinstance(given, list | tuple)
        or not given
        or any(isinstance(each, bool) or not isinstance(each, str | int | float) for each in given)
    ):
        raise UserError(
            f"condition on '{field}': {name} is {given!r}, give a list of one or more values"
        )
    return tuple(str(each) for each in given)
