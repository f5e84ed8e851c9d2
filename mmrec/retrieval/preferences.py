"""Soft wishes: more or less of a value, greater or smaller numbers; nothing is left out for them.

text or JSON ─► Preference ─► + strength x spread of the scores x what an item has of it

Legend: N items of the catalogue · C candidates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError
from mmrec.retrieval.attributes import ItemAttributes, Numbers

BoolArray = npt.NDArray[np.bool_]

_WRITTEN = re.compile(
    r"\s*(?P<field>[^<>=!*]+?)\s*(?P<sign>!=|=|<|>)\s*(?P<values>[^*]*?)\s*"
    r"(?:\*\s*(?P<strength>\S+)\s*)?"
)
_HOW = (
    "write FIELD=VALUE|VALUE or FIELD!=VALUE|VALUE for more or less of a value, FIELD> or FIELD< "
    "for a greater or smaller number, and *STRENGTH behind it for another strength than 1"
)
_KEYS = ("field", "values", "less", "strength")


@dataclass(frozen=True)
class Preference:
    """A soft wish: what has more of something comes sooner, and nothing is left out.

    It adds strength times the spread of the scores (their standard deviation over the candidates)
    to items that have one of the values; of a number, for each standard deviation above the mean.
    So a list's share of the value, or its mean of the number, never falls as the strength grows.

    Attributes:
        field: an attribute of items.
        values: of a category or set; none of a number.
        less: the other way round: less of the values, or smaller numbers.
        strength: above 0; 1 is as much as one standard deviation of the scores.

    Raises:
        UserError: the strength is not above 0.
    """

    field: str
    values: tuple[str, ...] = ()
    less: bool = False
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not (self.strength > 0 and math.isfinite(self.strength)):
            raise UserError(
                f"preference for '{self.field}': strength is {self.strength}, give a number above 0"
            )

    @classmethod
    def parse(cls, text: str) -> Preference:
        """Reads a preference as it is written on the command line: "genre!=horror*2", "year>".

        Raises:
            UserError: it is not of a known form.
        """
        found = _WRITTEN.fullmatch(text)
        values: tuple[str, ...] = ()
        if found is not None:
            values = tuple(part.strip() for part in found["values"].split("|") if part.strip())
        if found is None or bool(values) != ("=" in found["sign"]):
            raise UserError(f"preference '{text}' cannot be read: {_HOW}")
        try:
            strength = 1.0 if found["strength"] is None else float(found["strength"])
        except ValueError:
            raise UserError(f"preference '{text}': '{found['strength']}' is no number") from None
        return cls(found["field"], values, less=found["sign"] in ("!=", "<"), strength=strength)

    @classmethod
    def from_json(cls, given: Any) -> Preference:
        """Reads {"field": "genre", "values": ["horror"], "less": true}, strength 1 unless given.

        Raises:
            UserError: a key is not known, or a value is of a wrong type.
        """
        if not isinstance(given, Mapping) or not isinstance(given.get("field"), str):
            raise UserError(
                f"preference {given!r} is no object with a field; keys are {', '.join(_KEYS)}"
            )
        asker = f"preference for '{given['field']}'"
        stray = sorted(given.keys() - set(_KEYS))
        if stray:
            raise UserError(f"{asker}: key '{stray[0]}' is not known; keys are {', '.join(_KEYS)}")
        values, less = given.get("values", []), given.get("less", False)
        strength = given.get("strength", 1.0)
        if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
            raise UserError(f"{asker}: values is {values!r}, give a list of strings")
        if not isinstance(less, bool):
            raise UserError(f"{asker}: less is {less!r}, give true or false")
        if isinstance(strength, bool) or not isinstance(strength, int | float):
            raise UserError(f"{asker}: strength is {strength!r}, give a number above 0")
        return cls(given["field"], tuple(values), less, strength)


def weigh(
    preferences: Iterable[Preference],
    attributes: ItemAttributes,
    rows: IntArray,
    scores: Tensor,
    *,
    novelty: float = 0.0,
    counts: IntArray | None = None,
) -> Tensor:
    """Scores (C,) with what soft wishes add.

    Args:
        preferences: the wishes.
        attributes: of N items.
        rows: (C,) item_index of the candidates.
        scores: (C,), -inf of what may not be listed: it counts for no spread and no mean.
        novelty: strength of the wish for items that few have met, 0 or more.
        counts: (N,) training events of each item; None where there is no such wish.

    Raises:
        UserError: a field is no attribute, or a wish is not of its type.
    """
    listable = torch.isfinite(scores)
    spread = float(scores[listable].double().std(correction=0)) if listable.any() else 0.0
    told = listable.cpu().numpy()
    for each in preferences:
        has = _signal(each, attributes, rows, told)
        sign = -1.0 if each.less else 1.0
        scores = scores + torch.from_numpy(sign * each.strength * spread * has).to(scores)
    if novelty and counts is not None:  # by ratios: of 10 and 20 events as of 1,000 and 2,000
        known = _deviations(np.log1p(counts[rows].astype(np.float64)), told)
        scores = scores - torch.from_numpy(novelty * spread * known).to(scores)
    return scores


def _signal(
    wish: Preference, attributes: ItemAttributes, rows: IntArray, listable: BoolArray
) -> Numbers:
    """(C,) what each candidate has of a wish: 1 for a value, deviations from the mean of a number.

    A number that is not known counts as the mean.
    """
    asker = f"preference for '{wish.field}'"
    attributes.require(wish.field, "preference")
    if wish.field in attributes.words:
        if not wish.values:
            raise UserError(f"{asker}: it has words, no numbers; name one: {wish.field}=VALUE")
        return attributes.words[wish.field].any_of(wish.values)[rows].astype(np.float64)
    if wish.values:
        raise UserError(
            f"{asker}: it is a number; write {wish.field}> or {wish.field}< for greater or smaller"
        )
    return _deviations(attributes.numbers[wish.field][rows], listable)


def _deviations(numbers: Numbers, listable: BoolArray) -> Numbers:
    """(C,) deviations of a number from its mean among what may be listed; 0 of one not known."""
    known = numbers[listable & np.isfinite(numbers)]
    deviation = float(known.std()) if len(known) else 0.0
    if deviation == 0:
        return np.zeros(len(numbers))
    return np.where(np.isfinite(numbers), (numbers - known.mean()) / deviation, 0.0)
