"""Settings as YAML: read, with `section.field=value` overrides, and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mmrec.config.dotted import set_dotted
from mmrec.config.run import Config, parse_config
from mmrec.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a run's YAML and applies `section.field=value` overrides.

    Raises:
        ConfigError: the file is missing, is no mapping, or a setting is wrong.
    """
    return resolve(read_document(path), overrides, str(path))


def resolve(document: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """Applies `section.field=value` overrides to settings, in place, and checks the result.

    Raises:
        ConfigError: a setting or an override is wrong.
    """
    for override in overrides:
        _apply(document, override)
    return parse_config(document, source)


def read_document(path: Path) -> dict[str, Any]:
    """The settings of a YAML as they are written.

    Raises:
        ConfigError: the file is missing, or is no mapping.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a run's YAML") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds {type(document).__name__}, not a mapping of sections")
    return document


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
