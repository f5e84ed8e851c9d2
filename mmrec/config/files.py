"""Settings as YAML: read, with `section.field=value` overrides, and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmrec.config.dotted import set_dotted
from mmrec.config.run import Config, parse_config
from mmrec.errors import ConfigError

# What can still be changed once a run is trained: all else lies in its weights and figures.
IN_USE = ("evaluation.popularity_share", "evaluation.groups", "evaluation.first_events")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run's YAML and applies `section.field=value` overrides.

    Raises:
        ConfigError: the file is missing, is no mapping, or a setting is wrong.
    """
    document = _read_document(path)
    for override in overrides:
        _apply(document, override)
    return parse_config(document, str(path))


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a run's YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, not a mapping of sections")
    return document


def load_trained_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads the settings of a trained run or a bundle, with changes to how it is used.

    Raises:
        ConfigError: an override names a setting that training has settled, or is wrong; or the file
            was cut, which may leave YAML as valid as before.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key not in IN_USE:
            raise ConfigError(
                f"override {override!r}: a trained run's settings stay as they are, apart from "
                f"{', '.join(IN_USE)}; train another run to change {key}"
            )
    document = _read_document(path)
    for name in Config.model_fields:
        if name not in document:
            raise ConfigError(
                f"{path}: there is no section {name}, and a trained run's settings are complete; "
                "copy the run again"
            )
    return load_config(path, overrides)


def _apply(document: dict[str, Any], override: str) -> None:
    """Sets `a.b.c=value` in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write section.field=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"override {override!r}: not YAML: {' '.join(str(error).split())}"
        ) from None
    set_dotted(document, key, value, f"override {override!r}")


def dump_config(config: Config) -> str:
    """The resolved settings as YAML; `load_config` reads them back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
