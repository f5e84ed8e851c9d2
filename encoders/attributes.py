"""An item's structured fields as tokens: one for each category, set or number that is known.

    {"genres": ["Drama", "War"], "year": 1998} ─ transform ─► (F, W), known (F,) ─► Tokens

Legend: M items · F fields · W columns of all fields side by side. A field's token is zero outside
the field's own columns, so the linear map that fusion puts on tokens is a table of learned vectors,
one a column. There are no weights here: the tokens are cached like any frozen encoder's states.

    category   the value's column is 1
    set        each of n members' columns is 1 / sqrt(n)
    number     the two columns of the knots beside it share 1 by nearness; beyond the ends, the end
    log        a number, near by ratios: half way from 10 to 1,000 is 100. 0 has a column of its
               own where training has it, else the lowest knot's; below 0 is refused

A category or member that is not in the vocabulary has the field's column for unknown values; a
field without a value has no token.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from encoders.encoder import Inputs, fingerprint
from encoders.tokens import Tokens, masked

MAX_VALUES = 256
NUM_KNOTS = 16


@dataclass(frozen=True)
class FieldSpec:
    """One field with what was learnt of it from the catalogue.

    Attributes:
        name: of the attribute.
        type: what its values are.
        values: of a category or set, the commonest first; one more column is for all others.
        knots: of a number, ascending: quantiles of its values, so that no scale has to be chosen.
        log: of a number, whether its place between two knots is that of its logarithm.
    """

    name: str
    type: Literal["category", "set", "number"]
    values: tuple[str, ...] = ()
    knots: tuple[float, ...] = ()
    log: bool = False

    @property
    def num_columns(self) -> int:
        """Columns of this field's token that may differ from zero."""
        return len(self.knots) if self.type == "number" else len(self.values) + 1

    def weights(self, value: Any) -> dict[int, float]:
        """Column to weight for a value; empty where it says nothing.

        Raises:
            ValueError: a number that is none, is not finite, or is below 0 on a log scale.
        """
        if self.type == "number":
            number = float(value)
            if not np.isfinite(number):
                raise ValueError(f"attribute {self.name} is {value}: not a finite number")
            return self._between_logs(number) if self.log else self._between(number)
        members = [value] if self.type == "category" else list(value)
        weights: Counter[int] = Counter()
        for member in members:
            known = str(member) in self.values
            column = self.values.index(str(member)) if known else len(self.values)
            weights[column] += 1 / len(members) ** 0.5
        return dict(weights)

    def _between(self, number: float) -> dict[int, float]:
        return self._shares(float(np.interp(number, self.knots, np.arange(len(self.knots)))))

    def _between_logs(self, number: float) -> dict[int, float]:
        if number < 0:
            raise ValueError(f"attribute {self.name} is {number:g}: a log scale begins at 0")
        if number == 0:
            return {0: 1.0}
        first = int(self.knots[0] == 0)
        logs = np.log(self.knots[first:])
        return self._shares(first + float(np.interp(np.log(number), logs, np.arange(len(logs)))))

    @staticmethod
    def _shares(place: float) -> dict[int, float]:
        low = int(place)
        share = place - low
        return {low: 1.0} if share == 0 else {low: 1 - share, low + 1: share}


def describe_fields(
    types: Mapping[str, Literal["category", "set", "number"]],
    records: Iterable[Mapping[str, Any]],
    *,
    max_values: int = MAX_VALUES,
    num_knots: int = NUM_KNOTS,
    logs: Container[str] = (),
) -> list[FieldSpec]:
    """Vocabularies and knots of fields.

    Args:
        types: of each field by its name.
        records: attributes of the items to learn from.
        max_values: commonest values kept of a category or set; ties in the order of the alphabet.
        num_knots: most knots of a number, which lie at evenly spaced quantiles of its values.
        logs: names of numbers on a log scale; values below 0 teach nothing.

    Raises:
        ValueError: no field, or one that no record has a value of (on a log scale, above 0).
    """
    if not types:
        raise ValueError("no attribute is left to encode")
    counts: dict[str, Counter[str]] = {name: Counter() for name in types}
    numbers: dict[str, list[float]] = {name: [] for name in types}
    for record in records:
        for name, kind in types.items():
            value = record.get(name)
            if value is None:
                continue
            if kind == "number":
                numbers[name].append(float(value))
            else:
                members = [value] if kind == "category" else value
                counts[name].update(str(member) for member in members)
    fields = []
    for name, kind in types.items():
        if not counts[name] and not numbers[name]:
            raise ValueError(f"attribute {name}: no item of training has a value")
        if kind == "number":
            make = partial(_log_knots, name) if name in logs else _knots
            knots = make(numbers[name], num_knots)
            fields.append(FieldSpec(name, kind, knots=knots, log=name in logs))
        else:
            ranked = sorted(counts[name].items(), key=lambda each: (-each[1], each[0]))
            values = tuple(value for value, _ in ranked[:max_values])
            fields.append(FieldSpec(name, kind, values=values))
    return fields


def _knots(numbers: Sequence[float], num_knots: int) -> tuple[float, ...]:
    places = np.linspace(0, 1, num_knots)
    return tuple(np.unique(np.quantile(numbers, places, method="nearest")).tolist())


def _log_knots(name: str, numbers: Sequence[float], num_knots: int) -> tuple[float, ...]:
    """0 where a value is 0, then quantiles of those above."""
    above = [number for number in numbers if number > 0]
    if not above:
        raise ValueError(f"attribute {name}: no item of training has a value above 0 for its log")
    zero = (0.0,) if 0 in numbers else ()
    return (*zero, *_knots(above, max(num_knots - len(zero), 1)))


class AttributeTransform:
    """Turns an item's attributes into one row of weights a field."""

    def __init__(self, fields: Sequence[FieldSpec]) -> None:
        """Set the fields, in the order of their tokens."""
        self.fields = tuple(fields)
        self.width = sum(field.num_columns for field in fields)

    @classmethod
    def from_document(cls, document: Sequence[Mapping[str, Any]]) -> Self:
        """Build it from what `document` gave."""
        return cls(
            [
                FieldSpec(
                    each["name"],
                    each["type"],
                    values=tuple(each["values"]),
                    knots=tuple(each["knots"]),
                    log=each.get("log", False),
                )
                for each in document
            ]
        )

    def document(self) -> list[dict[str, Any]]:
        """Return the fields as JSON values."""
        documents = []
        for field in self.fields:
            lists = {"values": list(field.values), "knots": list(field.knots)}
            document = {**asdict(field), **lists}
            if not field.log:  # a field without it is what it was: so are its cached states
                del document["log"]
            documents.append(document)
        return documents

    def __call__(self, attributes: Mapping[str, Any]) -> Tensor | None:
        """Return (F, W) float32, a row of zeros for a field not known; None where none is.

        Raises:
            ValueError: a number that is none, is not finite, or is below 0 on a log scale.
        """
        sample = torch.zeros(len(self.fields), self.width)
        first = 0
        for row, field in enumerate(self.fields):
            value = attributes.get(field.name)
            if value is not None:
                for column, weight in field.weights(value).items():
                    sample[row, first + column] = weight
            first += field.num_columns
        return sample if bool(sample.any()) else None

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Stack samples; a missing one becomes zeros.

        Returns:
            fields (M, F, W) float32, present (M,) bool.
        """
        missing = torch.zeros(len(self.fields), self.width)
        present = torch.tensor([sample is not None for sample in samples], dtype=torch.bool)
        rows = [missing if sample is None else sample for sample in samples]
        fields = torch.stack(rows) if rows else missing.new_zeros(0, *missing.shape)
        return {"fields": fields, "present": present}

    def fingerprint(self) -> str:
        """Return the sha256 of the fields."""
        return fingerprint({"transform": "attributes", "fields": self.document()})


class AttributeEncoder(nn.Module):
    """Gives each known field as one token; it has no weights, fusion projects."""

    modality = "attributes"

    def __init__(self, num_fields: int, width: int) -> None:
        """Set F and W."""
        super().__init__()
        self.num_tokens = num_fields
        self.width = self.state_width = width

    def below(self, inputs: Inputs) -> Tokens:
        """Return the fields as tokens.

        Args:
            inputs: fields (M, F, W), present (M,) bool.

        Returns:
            Tokens (M, F, W).
        """
        known = (inputs["fields"] != 0).any(dim=2) & inputs["present"].unsqueeze(1)
        return masked(inputs["fields"], known)

    def above(self, states: Tokens) -> Tokens:
        """Return the states as they are."""
        return states

    def forward(self, inputs: Inputs) -> Tokens:
        """Return tokens (M, F, W) of the inputs of `AttributeTransform.collate`."""
        return self.above(self.below(inputs))

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over known fields, (M, W); zeros where none is."""
        return tokens.pooled()

    def fingerprint(self) -> str:
        """Return the sha256 of F and W."""
        shape = [self.num_tokens, self.width]
        return fingerprint({"encoder": self.modality, "shape": shape})
