"""The facts that a model is given of events, requests and users: columns and weights.

    Told, by a SignalSpec ─► SignalReader ─► `fusion.signals.Signals`

An event has: its type, its value between knots, the time since the event before (on a scale of
logarithms), the hour and the weekday, its context. A request has the last three. Each has a column
of its own for "not known", and a category that was never seen one for "another". Hours and weekdays
turn: 23:00 lies next to 00:00. Times are UTC.

Legend: n events · U users · S things known of each · F fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_prep.shards import UNKNOWN_TIME
from encoders.attributes import FieldSpec
from fusion.signals import Facts, Signals
from mmrec.data.signal_spec import (
    NUM_CLOCK,
    Floats,
    SignalSpec,
    describe_signals,
    log_gaps,
    signals_without,
    spec_of,
)
from mmrec.data.told import EventColumns, Objects, Told, join_columns, unknown_events

__all__ = [
    "DAY_S",
    "FIRST_THURSDAY",
    "HOUR_S",
    "MAX_MEMBERS",
    "NUM_CLOCK",
    "SignalReader",
    "SignalSource",
    "SignalSpec",
    "clock",
    "describe_signals",
    "signals_without",
    "spec_of",
]

MAX_MEMBERS = 16  # of a set of a user's that count
DAY_S, HOUR_S = 86_400, 3_600
FIRST_THURSDAY = 3  # weekday of 1970-01-01, Monday is 0


class SignalReader:
    """Turns what is told into columns and weights.

    Args:
        spec: what is read.
    """

    def __init__(self, spec: SignalSpec) -> None:
        self.spec = spec
        self._codes = [
            {value: place for place, value in enumerate(field.values)} for field in spec.context
        ]
        sizes = [field.num_columns + 1 for field in spec.users]
        self._user_firsts = list(zip(spec.users, np.cumsum([0, *sizes]).tolist(), strict=False))

    def signals(self, told: Told) -> Signals:
        """Everything that the model reads: of the events, a request each, and the users."""
        return self._signals(told.events, told.requests, told.attributes)

    def unknown(self, *, num_events: int, num_users: int) -> Signals:
        """What a model is given where nothing is told."""
        events, requests = unknown_events(num_events), unknown_events(num_users)
        return self._signals(events, requests, [{}] * num_users)

    def _signals(
        self,
        events: EventColumns,
        requests: EventColumns,
        attributes: Sequence[Mapping[str, Any]],
    ) -> Signals:
        spec = self.spec
        return Signals(
            self.events(events) if spec.num_event_columns else None,
            self.requests(requests) if spec.num_request_columns else None,
            self.users(attributes) if spec.users else None,
        )

    def events(self, columns: EventColumns) -> Facts:
        """Facts of n events: (n, S)."""
        spec, parts, first = self.spec, _Parts(len(columns)), 0
        if spec.event_types:
            unknown = len(spec.event_types)
            known = (columns.event >= 0) & (columns.event < unknown)
            parts.add(np.where(known, columns.event, unknown))
            first = unknown + 1
        if spec.value_knots:
            parts.add_between(columns.value.astype(np.float64), spec.value_knots, first)
            first += len(spec.value_knots) + 1
        self._add_request(parts, columns, first)
        return parts.facts()

    def requests(self, columns: EventColumns) -> Facts:
        """Facts of n requests: (n, S)."""
        parts = _Parts(len(columns))
        self._add_request(parts, columns, 0)
        return parts.facts()

    def users(self, attributes: Sequence[Mapping[str, Any]]) -> Facts:
        """Facts of U users: (U F, S), a row a field, a user's fields together."""
        weights = [
            self._field(field, record.get(field.name), first)
            for record in attributes
            for field, first in self._user_firsts
        ]
        num_slots = max((len(each) for each in weights), default=1)
        columns = np.zeros((len(weights), num_slots), np.int64)
        values = np.zeros((len(weights), num_slots), np.float32)
        for row, each in enumerate(weights):
            columns[row, : len(each)] = list(each)
            values[row, : len(each)] = list(each.values())
        return Facts(torch.from_numpy(columns), torch.from_numpy(values))

    def _field(self, field: FieldSpec, value: Any, first: int) -> dict[int, float]:
        """Column to weight of a user's field; its last column where it is not known."""
        if isinstance(value, list):
            value = value[:MAX_MEMBERS]
        try:
            found = {} if value is None else field.weights(value)
        except (TypeError, ValueError):  # no number: a request's word, which nobody has checked
            found = {}
        return {first + column: weight for column, weight in found.items()} or {
            first + field.num_columns: 1.0
        }

    def knows_nothing_of(self, request: EventColumns) -> bool:
        """Whether a request (1) says nothing that the model reads."""
        nothing = self.requests(unknown_events(1, list(request.context)))
        found = self.requests(request)
        return torch.equal(found.columns, nothing.columns) and torch.equal(
            found.weights, nothing.weights
        )

    def context_codes(self, columns: EventColumns, name: str) -> npt.NDArray[np.int64]:
        """(n,) place of each event's context among the known ones, then another's, then none's."""
        place = [field.name for field in self.spec.context].index(name)
        return _codes(columns.context.get(name), self._codes[place], len(columns))

    def _add_request(self, parts: _Parts, columns: EventColumns, first: int) -> None:
        spec = self.spec
        if spec.gap_knots:
            parts.add_between(log_gaps(columns), spec.gap_knots, first)
            first += len(spec.gap_knots) + 1
            known = columns.time != UNKNOWN_TIME
            for number, wave in enumerate(clock(columns.time)):
                parts.add(np.full(len(known), first + number), np.where(known, wave, 0.0))
            parts.add(np.full(len(known), first + NUM_CLOCK), np.where(known, 0.0, 1.0))
            first += NUM_CLOCK + 1
        for field, codes in zip(spec.context, self._codes, strict=True):
            values = columns.context.get(field.name)
            parts.add(first + _codes(values, codes, len(columns)))
            first += field.num_columns + 1


def _codes(values: Objects | None, codes: Mapping[str, int], n: int) -> npt.NDArray[np.int64]:
    """(n,) place of each value: behind the known ones that of another, then that of none."""
    if values is None:
        return np.full(n, len(codes) + 1)
    other, none = len(codes), len(codes) + 1
    return np.array([none if each is None else codes.get(each, other) for each in values], np.int64)


def clock(time: npt.NDArray[np.int64]) -> list[Floats]:
    """Sine and cosine of the hour (once and twice round) and of the weekday: NUM_CLOCK of (n,).

    Args:
        time: (n,) Unix seconds, read as UTC.
    """
    day = 2 * np.pi * (time % DAY_S) / DAY_S
    week = 2 * np.pi * ((time // DAY_S + FIRST_THURSDAY) % 7) / 7
    return [np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day), np.sin(week), np.cos(week)]


class _Parts:
    """Slots of n rows, put side by side."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.columns: list[npt.NDArray[Any]] = []
        self.weights: list[npt.NDArray[Any]] = []

    def add(self, columns: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None) -> None:
        """One more slot."""
        self.columns.append(columns)
        self.weights.append(np.ones(self.n) if weights is None else weights)

    def add_between(self, numbers: Floats, knots: Sequence[float], first: int) -> None:
        """Two slots: the knots beside each number share 1 by nearness; NaN has the last column."""
        unknown = np.isnan(numbers)
        place = np.interp(np.where(unknown, knots[0], numbers), knots, np.arange(len(knots)))
        low = np.minimum(place.astype(np.int64), len(knots) - 1)
        share = place - low
        high = np.minimum(low + 1, len(knots) - 1)
        self.add(first + np.where(unknown, len(knots), low), np.where(unknown, 1.0, 1 - share))
        self.add(first + high, np.where(unknown, 0.0, share))

    def facts(self) -> Facts:
        """All slots: (n, S)."""
        if not self.columns:
            return Facts(torch.zeros(self.n, 0, dtype=torch.int64), torch.zeros(self.n, 0))
        columns = np.stack(self.columns, axis=1).astype(np.int64)
        weights = np.stack(self.weights, axis=1).astype(np.float32)
        return Facts(torch.from_numpy(columns), torch.from_numpy(weights))


class SignalSource:
    """What training is told of the histories of a batch; now and then nothing.

    Args:
        reader: of the model.
        attributes: of users, by user_index.
        dropout: chance that the events of a history, a request, or an attribute is not told.
        seed: of the run.
    """

    def __init__(
        self,
        reader: SignalReader,
        attributes: Sequence[Mapping[str, Any]],
        *,
        dropout: float,
        seed: int,
    ) -> None:
        self.reader, self.attributes = reader, attributes
        self.dropout, self.seed = dropout, seed

    def draw(
        self,
        columns: Sequence[EventColumns],
        users: Sequence[int],
        *,
        epoch: int,
        batch: int,
        places: Sequence[int],
    ) -> Signals:
        """Signals of stretches of histories.

        Args:
            columns: of each stretch, its first event and its targets: every event but the last is
                an input, every one but the first a request.
            users: user_index of each; -1 for a stand-in.
            epoch: of training.
            batch: in the epoch.
            places: of each in the global batch, so that any number of ranks draws the same.
        """
        events, requests, attributes = [], [], []
        for each, user, place in zip(columns, users, places, strict=True):
            random = np.random.default_rng((self.seed, epoch, 13, batch, place))
            silent = bool(random.random() < self.dropout)
            hidden = random.random(len(each) - 1) < self.dropout
            events.append(each.take(slice(0, -1)).without(np.full(len(each) - 1, silent)))
            requests.append(each.take(slice(1, None)).without(hidden))
            known = self.attributes[user] if user >= 0 else {}
            attributes.append(
                {name: value for name, value in known.items() if random.random() >= self.dropout}
            )
        return self.reader.signals(Told(join_columns(events), join_columns(requests), attributes))
