"""Which signals, heads and weights of event types each of several catalogues has the columns for.

    settings of the run ─┬─ nobody has the columns: refused
                         └─ of each catalogue: what its log and its tables have

Signals and heads are a catalogue's own, so that logs may say different things. A head's event types
are one log's words: a catalogue has all of them, and the head, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.shards import PreparedData
from mmrec.config import Config, HeadConfig, LabelsConfig
from mmrec.data.signal_spec import signals_without
from mmrec.errors import ConfigError


def check_told(config: Config, data: Mapping[str, PreparedData]) -> None:
    """Refuses signals, heads, labels and weights that no catalogue has the columns for.

    Args:
        config: of the run.
        data: the prepared folder of each catalogue.

    Raises:
        ConfigError: names which, and what the catalogues have.
    """
    asked = config.model.signals.model_dump(mode="json")
    having = [signals_without(config.model.signals, each) for each in data.values()]
    for name, value in asked.items():
        if isinstance(value, list):
            known = {column for each in having for column in each[name] or ()}
            lost = [column for column in value if column not in known]
            if lost:
                raise ConfigError(
                    f"model.signals.{name} names '{lost[0]}', which no catalogue has; name columns "
                    f"of theirs, or set model.signals.{name}=true for all"
                )
        elif value and not any(each[name] for each in having):
            raise ConfigError(
                f"model.signals.{name} is {value}, but no catalogue names such a column; set "
                f"model.signals.{name}=false"
            )
    for name, head in config.model.heads.items():
        if not [each for each in data.values() if _has(name, head, each)]:
            wanted = ", ".join(_types_of(head)) or "no event types, but values"
            raise ConfigError(
                f"model.heads.{name} names {wanted}, which no catalogue has; event types are "
                f"{_types(data)}"
            )
    for each in config.training.event_weights:
        if not any(each in event_types(one) for one in data.values()):
            raise ConfigError(
                f"training.event_weights names '{each}', which no catalogue has; event types are "
                f"{_types(data)}"
            )
    for name, labels in config.model.labels.items():
        if not any(_has_labels(name, labels, each) for each in data.values()):
            raise ConfigError(
                f"model.labels.{name}: '{labels.attribute or name}' is no attribute of any "
                "catalogue's items"
            )


def keep_told(document: dict[str, Any], config: Config, data: PreparedData) -> None:
    """Leaves in the settings of one catalogue's part what the catalogue has the columns for.

    Args:
        document: a copy of the run's settings, changed in place.
        config: of the run.
        data: the catalogue's prepared folder.

    Raises:
        ConfigError: it has some of a head's event types and not all.
    """
    model, training = document["model"], document["training"]
    model["signals"] |= signals_without(config.model.signals, data)
    model["heads"] = {
        name: model["heads"][name]
        for name, head in config.model.heads.items()
        if _has(name, head, data)
    }
    model["labels"] = {
        name: model["labels"][name]
        for name, each in config.model.labels.items()
        if _has_labels(name, each, data)
    }
    types = event_types(data)
    weights = training["event_weights"]
    training["event_weights"] = {name: weights[name] for name in weights if name in types}
    if not data.catalogue.interactions.shown:
        training["shown_weight"] = 0.0


def event_types(data: PreparedData) -> Sequence[str]:
    """Types of the log's events; empty where it names no column of them."""
    return tuple(data.manifest.get("event_types") or ())


def _types_of(head: HeadConfig) -> list[str]:
    return list(dict.fromkeys([*head.positive, *head.among]))


def _has(name: str, head: HeadConfig, data: PreparedData) -> bool:
    """Whether a catalogue's log has what a head is to tell."""
    types = event_types(data)
    wanted = _types_of(head)
    lacking = [each for each in wanted if each not in types]
    if lacking and len(lacking) < len(wanted):
        met = next(each for each in wanted if each in types)
        raise ConfigError(
            f"model.heads.{name} names '{met}' and '{lacking[0]}'; the log of catalogue "
            f"'{data.catalogue.name}' has the first and not the second ({', '.join(types)}): give "
            "each catalogue's types a head of their own"
        )
    has_value = data.catalogue.interactions.value is not None
    return not lacking and (head.kind == "binary" or has_value)


def _has_labels(name: str, labels: LabelsConfig, data: PreparedData) -> bool:
    """Whether a catalogue has labels: an attribute, or events, which all have."""
    by_events = labels.popularity is not None
    return by_events or (labels.attribute or name) in data.catalogue.items.attributes


def _types(data: Mapping[str, PreparedData]) -> str:
    found = (f"{name}: {', '.join(event_types(each)) or 'none'}" for name, each in data.items())
    return "; ".join(found)
