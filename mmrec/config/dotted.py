"""Settings by dotted name, such as `model.history.dropout`: read, changed, listed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmrec.config.run import Config, parse_config
from mmrec.errors import ConfigError


def set_dotted(document: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Sets the value of a dotted key in place."""
    *parents, field = _split_key(key)
    node = document
    for name in parents:
        child = node.get(name)
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {name} is a value, not a section")
        node = child
    node[field] = value


def change(config: Config, settings: Mapping[str, Any], source: str) -> Config:
    """The settings with some of them changed, checked anew.

    Args:
        config: what to start from.
        settings: values by dotted name.
        source: where they come from, for messages.

    Raises:
        ConfigError: a name is unknown, or a value is not allowed.
    """
    document = config.model_dump(mode="json")
    for key, value in settings.items():  # a later name may change a part of an earlier value
        set_dotted(document, key, deepcopy(value), f"{source}: {key}")
    return parse_config(document, source)


def setting(config: Config, key: str) -> Any:
    """The value of a dotted name that exists."""
    node: Any = config
    for name in _split_key(key):
        node = node[name] if isinstance(node, Mapping) else getattr(node, name)
    return node


def _split_key(key: str) -> list[str]:
    """Splits at dots, but keeps the dot of a ready-made vector's modality (`vector.clip`)."""
    names = key.split(".")
    if len(names) > 2 and names[0] == "encoders" and names[1] == "vector":
        names[1:3] = [f"vector.{names[2]}"]
    return names


def dotted_settings(config: Config) -> dict[str, Any]:
    """Every setting by its dotted name, such as `model.history.dropout`."""
    return _flat(config.model_dump(mode="json"), "")


def _flat(document: Mapping[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{path}{key}.")
        else:
            found[path + key] = value
    return found
