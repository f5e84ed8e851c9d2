"""Which signals a model reads, and what is learnt of their values before training.

training histories, users ─► describe_signals ─► SignalSpec (in the checkpoint)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_prep.shards import UNKNOWN_TIME
from encoders.attributes import FieldSpec, describe_fields
from mmrec.data.told import EventColumns, columns_of
from mmrec.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.shards import PreparedData
    from mmrec.config import SignalsConfig
    from mmrec.data.histories import HistorySource

MAX_VALUES = 256
NUM_KNOTS = 16
MAX_HISTORIES = 5000  # that values and gaps are learnt from
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SignalSpec:
    """What a model reads beside items.

    Attributes:
        event_types: names by code, where types are read; empty: they are not.
        value_knots: ascending; empty: values are not read.
        gap_knots: log seconds between events, ascending; empty: times are not read.
        context: a category for each column that is read.
        users: a field for each attribute that is read.
    """

    event_types: tuple[str, ...] = ()
    value_knots: tuple[float, ...] = ()
    gap_knots: tuple[float, ...] = ()
    context: tuple[FieldSpec, ...] = ()
    users: tuple[FieldSpec, ...] = ()

    def document(self) -> dict[str, Any]:
        """JSON values that `from_document` reads back."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> SignalSpec:
        """The spec that `document` described."""
        return cls(
            event_types=tuple(document["event_types"]),
            value_knots=tuple(document["value_knots"]),
            gap_knots=tuple(document["gap_knots"]),
            context=tuple(map(_field_of, document["context"])),
            users=tuple(map(_field_of, document["users"])),
        )

    @property
    def num_event_columns(self) -> int:
        """Columns of an event."""
        types = len(self.event_types) + 1 if self.event_types else 0
        values = len(self.value_knots) + 1 if self.value_knots else 0
        return types + values + self.num_request_columns

    @property
    def num_request_columns(self) -> int:
        """Columns of a request."""
        times = len(self.gap_knots) + 1 + NUM_CLOCK + 1 if self.gap_knots else 0
        return times + sum(field.num_columns + 1 for field in self.context)

    @property
    def num_user_columns(self) -> int:
        """Columns of all attributes."""
        return sum(field.num_columns + 1 for field in self.users)


def _field_of(document: Mapping[str, Any]) -> FieldSpec:
    values, knots = tuple(document["values"]), tuple(document["knots"])
    return FieldSpec(document["name"], document["type"], values=values, knots=knots)


def spec_of(document: Mapping[str, Any] | None) -> SignalSpec | None:
    """The spec in a checkpoint's state; None for a model that reads items alone."""
    return None if document is None else SignalSpec.from_document(document)


# of a moment: sine and cosine of the day (once and twice round) and of the week
NUM_CLOCK = 6


def describe_signals(
    wanted: SignalsConfig, data: PreparedData, histories: HistorySource
) -> SignalSpec | None:
    """What the signals that are switched on look like in the training histories.

    Args:
        wanted: which to read.
        data: the prepared folder.
        histories: of training.

    Returns:
        None where none is switched on.

    Raises:
        ConfigError: the data lack a signal that is switched on.
    """
    if not wanted.any:
        return None
    columns = _having(data)
    for name, having in columns.items():
        if getattr(wanted, name) and not having:
            raise ConfigError(
                f"model.signals.{name} is {getattr(wanted, name)}, but the catalogue names no such "
                f"column ({_PLACES[name]}): name one and prepare again, or set "
                f"model.signals.{name}=false"
            )
    chosen = {
        name: _chosen(name, getattr(wanted, name), columns[name]) for name in ("context", "users")
    }
    values, gaps = np.zeros(0), np.zeros(0)
    seen: dict[str, Counter[str]] = {}
    if wanted.values or wanted.times or chosen["context"]:
        values, gaps, seen = _survey(histories, chosen["context"])
    context = []
    for name in chosen["context"]:
        ranked = sorted(seen[name].items(), key=lambda each: (-each[1], each[0]))
        names = tuple(value for value, _ in ranked[:MAX_VALUES])
        context.append(FieldSpec(name, "category", values=names))
    return SignalSpec(
        event_types=tuple(columns["events"]) if wanted.events else (),
        value_knots=_knots(values, "values") if wanted.values else (),
        gap_knots=_knots(gaps, "times") if wanted.times else (),
        context=tuple(context),
        users=_user_fields(data, chosen["users"]),
    )


def signals_without(wanted: SignalsConfig, data: PreparedData) -> dict[str, Any]:
    """The settings of signals as far as a catalogue has the columns, for one among several."""
    found = wanted.model_dump(mode="json")
    for name, having in _having(data).items():
        asked = found[name]
        if not having or isinstance(asked, bool):
            found[name] = bool(asked and having)
        else:
            found[name] = [column for column in asked if column in having]
    return found


def _having(data: PreparedData) -> dict[str, Sequence[str]]:
    """Columns that a catalogue has of each signal."""
    spec, users = data.catalogue.interactions, data.catalogue.users
    return {
        "events": tuple(data.manifest.get("event_types") or ()),
        "values": () if spec.value is None else (spec.value,),
        "times": () if spec.time is None else (spec.time,),
        "context": spec.context,
        "users": () if users is None else tuple(users.attributes),
    }


def _chosen(name: str, wanted: bool | Sequence[str], columns: Sequence[str]) -> Sequence[str]:
    """The columns that a setting asks for.

    Raises:
        ConfigError: it names one that is not there.
    """
    if isinstance(wanted, bool):
        return columns if wanted else ()
    for column in wanted:
        if column not in columns:
            raise ConfigError(
                f"model.signals.{name} names '{column}'; the catalogue has {', '.join(columns)} "
                f"({_PLACES[name]})"
            )
    return wanted


_PLACES = {
    "events": "interactions.event",
    "values": "interactions.value",
    "times": "interactions.time",
    "context": "interactions.context",
    "users": "users.attributes",
}


def _survey(
    histories: HistorySource, context: Sequence[str]
) -> tuple[Floats, Floats, dict[str, Counter[str]]]:
    """Known values, known gaps, and how often each context occurs, of evenly chosen histories."""
    num = len(histories.lengths)
    chosen = np.unique(np.linspace(0, num - 1, min(num, MAX_HISTORIES)).astype(int))
    values, gaps = [], []
    seen: dict[str, Counter[str]] = {name: Counter() for name in context}
    for row in chosen:
        columns = columns_of(histories.read(int(row)))
        values.append(columns.value[~np.isnan(columns.value)])
        gaps.append(log_gaps(columns))
        for name in context:
            if name in columns.context:
                seen[name].update(each for each in columns.context[name] if each is not None)
    all_gaps = np.concatenate(gaps)
    return np.concatenate(values).astype(np.float64), all_gaps[~np.isnan(all_gaps)], seen


def _knots(numbers: Floats, name: str) -> tuple[float, ...]:
    """Evenly spaced quantiles.

    Raises:
        ConfigError: there are no numbers.
    """
    if not len(numbers):
        raise ConfigError(
            f"model.signals.{name} is true, but no event of training has one; set "
            f"model.signals.{name}=false"
        )
    places = np.linspace(0, 1, NUM_KNOTS)
    found = np.unique(np.quantile(numbers, places, method="nearest"))
    return tuple(found.tolist())


def _user_fields(data: PreparedData, names: Sequence[str]) -> tuple[FieldSpec, ...]:
    """Fields of the attributes that at least one user has a value of."""
    specs = {} if data.catalogue.users is None else data.catalogue.users.attributes
    types = {name: specs[name].type for name in names}
    if not types:
        return ()
    records = data.user_attributes
    having = {name for record in records for name in record}
    known = {name: kind for name, kind in types.items() if name in having}
    if not known:
        raise ConfigError(
            f"model.signals.users: no user has a value of {', '.join(types)}; set "
            "model.signals.users=false"
        )
    return tuple(describe_fields(known, records))


def log_gaps(columns: EventColumns) -> Floats:
    """(n,) log(1 + seconds) since the event before, NaN where not known."""
    known = (columns.time != UNKNOWN_TIME) & (columns.before != UNKNOWN_TIME)
    seconds = np.where(known, columns.time - columns.before, 0).clip(min=0)
    return np.where(known, np.log1p(seconds), np.nan)
