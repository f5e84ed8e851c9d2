"""What an exported user tower is told beside items, made into the model's facts by tensors alone.

    event, value, time, context, request_time, request_context, user_* ─► `fusion.signals.Facts`

`mmrec.data.signals.SignalReader` does the same from Python's values with numpy; here every step is
an operation that `torch.export` keeps.

Legend: B users · L events of a history · C columns of context · S things known of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_prep.shards import UNKNOWN_TIME
from encoders.attributes import FieldSpec
from fusion.signals import Facts
from mmrec.data.signal_spec import NUM_CLOCK, SignalSpec
from mmrec.data.signals import DAY_S, FIRST_THURSDAY, MAX_MEMBERS


@dataclass(frozen=True)
class ToldEvents:
    """What is known of events or of requests, of any shape (...); None: the model does not read it.

    Attributes:
        event: int64, place in the model's event types, -1 where not known.
        value: float32, NaN where not known.
        time: int64 Unix seconds, UNKNOWN_TIME where not known.
        before: as time, of the event before.
        context: (..., C) int64, place in each column's values, then that of another, then none's.
    """

    event: Tensor | None = None
    value: Tensor | None = None
    time: Tensor | None = None
    before: Tensor | None = None
    context: Tensor | None = None


class TowerSignals(nn.Module):
    """Facts of events, requests and users.

    Args:
        spec: what the model reads.

    Attributes:
        unknown_context: (C,) int64, what stands for a context that is not known.
    """

    unknown_context: Tensor

    def __init__(self, spec: SignalSpec) -> None:
        super().__init__()
        self.spec = spec
        unknown = [len(field.values) + 1 for field in spec.context]
        self.register_buffer("unknown_context", torch.tensor(unknown, dtype=torch.int64))
        self.register_buffer("value_knots", _knots(spec.value_knots))
        self.register_buffer("gap_knots", _knots(spec.gap_knots))
        for place, field in enumerate(fields_of(spec, "number")):
            self.register_buffer(f"user_knots_{place}", _knots(field.knots))

    def events(self, told: ToldEvents) -> Facts:
        """Facts of n events, (n, S), those of any shape one after the other."""
        spec, slots, first = self.spec, _Slots(), 0
        if told.event is not None:
            unknown = len(spec.event_types)
            known = (told.event >= 0) & (told.event < unknown)
            slots.add(torch.where(known, told.event, unknown))
            first = unknown + 1
        if told.value is not None:
            slots.add_between(told.value.double(), self.get_buffer("value_knots"), first)
            first += len(spec.value_knots) + 1
        self._add_request(slots, told, first)
        return slots.facts()

    def requests(self, told: ToldEvents) -> Facts:
        """Facts of n requests, (n, S)."""
        slots = _Slots()
        self._add_request(slots, told, 0)
        return slots.facts()

    def _add_request(self, slots: _Slots, told: ToldEvents, first: int) -> None:
        spec = self.spec
        if told.time is not None and told.before is not None:
            known = told.time != UNKNOWN_TIME
            seconds = (told.time - told.before).clamp(min=0).double()
            gap = torch.where(known & (told.before != UNKNOWN_TIME), seconds.log1p(), math.nan)
            slots.add_between(gap, self.get_buffer("gap_knots"), first)
            first += len(spec.gap_knots) + 1
            for number, wave in enumerate(_clock(told.time)):
                slots.add(torch.full_like(told.time, first + number), torch.where(known, wave, 0.0))
            slots.add(torch.full_like(told.time, first + NUM_CLOCK), (~known).float())
            first += NUM_CLOCK + 1
        if told.context is not None:
            for place, field in enumerate(spec.context):
                slots.add(first + told.context[..., place].clamp(0, len(field.values) + 1))
                first += field.num_columns + 1

    def users(
        self, categories: Tensor | None, numbers: Tensor | None, sets: Tensor | None
    ) -> Facts:
        """Facts of users, a row a field, a user's fields together.

        Args:
            categories: (B, n) int64, place in each field's values, their number for another one,
                -1 where not known.
            numbers: (B, n) float32 or float64, NaN where not known.
            sets: (B, n, MAX_MEMBERS) int64, places as of categories, -1 where there is no more.

        Returns:
            (B F, MAX_MEMBERS) in the order of the spec's fields.
        """
        rows, first, seen = [], 0, {"category": 0, "number": 0, "set": 0}
        for field in self.spec.users:
            place, slots = seen[field.type], _Slots()
            seen[field.type] += 1
            if field.type == "number":
                assert numbers is not None
                knots = self.get_buffer(f"user_knots_{place}")
                number = numbers[:, place].double()
                finite = torch.where(number.isfinite(), number, math.nan)
                slots.add_between(finite, knots, first)
            else:
                given = categories if field.type == "category" else sets
                assert given is not None
                members = given[:, place] if field.type == "set" else given[:, place, None]
                _add_members(slots, members, first=first, unknown=first + field.num_columns)
            rows.append(slots.facts(2 if sets is None else MAX_MEMBERS + 1))
            first += field.num_columns + 1
        columns = torch.stack([each.columns for each in rows], dim=1).flatten(0, 1)
        return Facts(columns, torch.stack([each.weights for each in rows], dim=1).flatten(0, 1))


def fields_of(spec: SignalSpec, kind: str) -> list[FieldSpec]:
    """The users' fields of a kind, in their order."""
    return [field for field in spec.users if field.type == kind]


def _knots(knots: Sequence[float]) -> Tensor:
    return torch.tensor(knots, dtype=torch.float64)


def _clock(time: Tensor) -> list[Tensor]:
    """What `mmrec.data.signals.clock` gives, in the same order."""
    day = 2 * math.pi * (time % DAY_S).double() / DAY_S
    week = 2 * math.pi * ((time // DAY_S + FIRST_THURSDAY) % 7).double() / 7
    return [day.sin(), day.cos(), (2 * day).sin(), (2 * day).cos(), week.sin(), week.cos()]


def _add_members(slots: _Slots, members: Tensor, *, first: int, unknown: int) -> None:
    """Members (B, m) of a category or set share its token; without one the unknown has it."""
    known = members >= 0
    number = known.sum(1, keepdim=True)
    weights = known / number.clamp(min=1).sqrt()
    places = members.clamp(0, unknown - first - 1)
    for place in range(members.shape[1]):
        slots.add(first + places[:, place], weights[:, place])
    slots.add(torch.full_like(places[:, 0], unknown), (number[:, 0] == 0).float())


class _Slots:
    """Columns and weights of n things, put side by side."""

    def __init__(self) -> None:
        self.columns: list[Tensor] = []
        self.weights: list[Tensor] = []

    def add(self, columns: Tensor, weights: Any = None) -> None:
        """One more slot."""
        self.columns.append(columns.flatten())
        weights = torch.ones_like(columns) if weights is None else weights
        self.weights.append(weights.flatten().float())

    def add_between(self, numbers: Tensor, knots: Tensor, first: int) -> None:
        """Two slots: the knots beside each number share 1 by nearness; NaN has the last column."""
        unknown, last = numbers.isnan(), knots.shape[0] - 1
        number = torch.where(unknown, knots[0], numbers)
        low = (torch.searchsorted(knots, number.contiguous(), right=True) - 1).clamp(0, last)
        high = (low + 1).clamp(max=last)
        width = (knots[high] - knots[low]).clamp(min=torch.finfo(torch.float64).tiny)
        share = ((number - knots[low]) / width).clamp(0, 1)
        self.add(first + torch.where(unknown, last + 1, low), torch.where(unknown, 1.0, 1 - share))
        self.add(first + high, torch.where(unknown, 0.0, share))

    def facts(self, num_slots: int = 0) -> Facts:
        """All slots: (n, S), at least so many; the rest say nothing."""
        while len(self.columns) < num_slots:
            self.add(torch.zeros_like(self.columns[0]), torch.zeros_like(self.weights[0]))
        return Facts(torch.stack(self.columns, dim=1), torch.stack(self.weights, dim=1))
