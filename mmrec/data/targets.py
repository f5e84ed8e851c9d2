"""Which events of the log are targets, and how much each type of them weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.shards import PreparedData
from mmrec.errors import ConfigError


@dataclass(frozen=True)
class TargetRule:
    """Which events may be targets; the others are history only.

    events: codes of the event types that may; None: all.
    min_value: least value; an event without a value is no target then. None: no bound.
    """

    events: frozenset[int] | None = None
    min_value: float | None = None

    def allowed(self, event: Any, value: Any, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """(stop - start,) bool for the events start..stop of a history's arrays."""
        passed = np.ones(stop - start, np.bool_)
        if self.events is not None and event is not None:
            passed &= np.isin(event[start:stop], list(self.events))
        if self.min_value is not None and value is not None:
            passed &= value[start:stop] >= self.min_value  # False for an unknown value, NaN
        return passed


def event_weights(given: Mapping[str, float], data: PreparedData) -> npt.NDArray[np.float32] | None:
    """(types + 1,) weight of each event type by its code, 1 for those without a type, the last.

    Raises:
        ConfigError: a name is no type of the log's.
    """
    if not given:
        return None
    types = list(data.manifest.get("event_types") or [])
    for name in given:
        if name not in types:
            raise ConfigError(
                f"training.event_weights names '{name}'; the log's event types are "
                f"{', '.join(types) or 'none'}"
            )
    return np.array([*(given.get(name, 1.0) for name in types), 1.0], np.float32)


def target_rule(data: PreparedData) -> TargetRule:
    """Which events the catalogue lets be targets, in training too."""
    spec = data.catalogue.interactions.targets
    if spec.events is None:
        return TargetRule(None, spec.min_value)
    codes = {name: code for code, name in enumerate(data.manifest.get("event_types") or [])}
    return TargetRule(
        frozenset(codes[event] for event in spec.events if event in codes), spec.min_value
    )
