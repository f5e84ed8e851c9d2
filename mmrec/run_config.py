"""The settings in a run's folder, read as the version that trained the run meant them.

    RUN/config.yaml ─► Config      complete, apart from settings that were not there yet

A setting that came later has a default for new runs. Where that is not what all runs did before,
what they did is filled in here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrec.config import Config, change, read_document, resolve
from mmrec.errors import ConfigError

logger = logging.getLogger(__name__)

# What can still be changed once a run is trained: all else lies in its weights and figures.
IN_USE = (
    "evaluation.popularity_share",
    "evaluation.new_last",
    "evaluation.new_boost",
    "evaluation.half_life_hours",
    "evaluation.half_life_when",
    "evaluation.new_words",
    "evaluation.groups",
    "evaluation.first_events",
)


def load_run_config(path: Path) -> Config:
    """Reads the settings of a run, finished or not.

    Raises:
        ConfigError: the file is missing, is no mapping, or a setting is wrong.
    """
    return resolve(_as_meant(read_document(path)), (), str(path))


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
    document = read_document(path)
    for name in Config.model_fields:
        if name not in document:
            raise ConfigError(
                f"{path}: there is no section {name}, and a trained run's settings are complete; "
                "copy the run again"
            )
    return resolve(_as_meant(document), overrides, str(path))


def go_on_with(config: Config, run: Path) -> Config:
    """The settings with which a run is resumed: those given, with caches as it began with them.

    A run that began before `cache_dtype` was a setting goes on in float16, so that nothing changes
    below what it has learnt.

    Raises:
        ConfigError: the run's own settings cannot be read.
    """
    path = run / "config.yaml"
    if not path.exists():
        return config
    changes = {
        f"encoders.{name}.cache_dtype": "float16"
        for name in _without_dtype(read_document(path))
        if name in config.encoders and config.encoders[name].cache_dtype != "float16"
    }
    if not changes:
        return config
    logger.info("%s: began when all states were cached in float16, and goes on so", run)
    return change(config, changes, str(path))


def _as_meant(document: dict[str, Any]) -> dict[str, Any]:
    """The document, with float16 where a run could not name another type for its caches."""
    for name in _without_dtype(document):
        document["encoders"][name]["cache_dtype"] = "float16"
    return document


def _without_dtype(document: dict[str, Any]) -> list[str]:
    """Encoders that say nothing of `cache_dtype`."""
    encoders = document.get("encoders")
    if not isinstance(encoders, dict):
        return []
    return [
        name
        for name, each in encoders.items()
        if isinstance(each, dict) and "cache_dtype" not in each
    ]
