"""The space of a search: which settings are tried, between which bounds, and what ends a trial.

A YAML, for example:

    halving: {first_epochs: 2, factor: 3}
    space:
      training.learning_rate: {low: 3.0e-4, high: 3.0e-3, log: true}
      model.history.dropout: {choices: [0.1, 0.2, 0.3]}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from data_prep.documents import explain_validation_error, read_mapping
from data_prep.errors import DataError
from mmrec.config import Config, Section, change, setting
from mmrec.errors import ConfigError

# These decide what a trial's value means: trials that differ in them cannot be compared.
FIXED = ("name", "data.split", "data.user_share", "data.event_share", "data.new_users",
         "training.stop_on")  # fmt: skip


class Range(Section):
    """The values of one setting: from low to high, or one of some choices."""

    low: int | float | None = None
    """Least value, inclusive. Whole numbers are drawn where the setting is one."""
    high: int | float | None = None
    """Largest value, inclusive."""
    log: bool = False
    """Draw the logarithm evenly, so that each factor of ten is as likely as the next."""
    choices: tuple[bool | int | float | str | None, ...] | None = None
    """Values without an order, or too few for bounds."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        bounds = (self.low, self.high)
        if self.choices is not None:
            if bounds != (None, None) or self.log:
                raise ValueError("give low and high, or choices, not both")
            if len(set(self.choices)) < max(2, len(self.choices)):
                raise ValueError("choices must be two different values or more, each once")
        elif self.low is None or self.high is None:
            raise ValueError("give both low and high, or choices")
        elif self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        elif self.log and self.low <= 0:
            raise ValueError(f"low {self.low} must be above 0 where log is true")
        return self

    def ends(self) -> Sequence[Any]:
        """The values that must be valid: both bounds, or every choice."""
        return (self.low, self.high) if self.choices is None else self.choices


class Halving(Section):
    """Asynchronous successive halving: a trial goes on past a rung if it is among the best there.

    Rungs are at first_epochs, first_epochs x factor, first_epochs x factor^2, … epochs.
    """

    first_epochs: int = Field(2, ge=1)
    """Epochs of the first rung; a multiple of training.evaluate_every."""
    factor: int = Field(3, ge=2)
    """One trial in this many goes on past a rung."""


class Search(Section):
    """A search."""

    seed: int = Field(0, ge=0)
    """Of the draws; training keeps training.seed."""
    random_trials: int = Field(10, ge=1)
    """Trials drawn at random before the sampler (TPE) learns from them."""
    halving: Halving | None = Halving()
    """null: every trial is trained to its end."""
    space: dict[str, Range] = Field(min_length=1)
    """The settings by their dotted names."""


def load_search(path: Path, config: Config) -> Search:
    """Reads a search and tries each bound and choice in the run's settings.

    Args:
        path: the YAML.
        config: settings that the search starts from.

    Returns:
        The search, its choices as the settings have them (`1e-3` is a string to YAML).

    Raises:
        ConfigError: one line that names the key, its value and what is allowed.
    """
    try:
        search = Search.model_validate(read_mapping(path))
    except DataError as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error, Search, str(path))) from None
    checked = {}
    for key, values in search.space.items():
        if key in FIXED:
            raise ConfigError(
                f"{path}: space: {key} decides what a trial's value means, so it cannot be "
                "searched; set it in the run's YAML"
            )
        found = [
            setting(change(config, {key: value}, f"{path}: space"), key) for value in values.ends()
        ]
        names = ("low", "high") if values.choices is None else ("choices",)
        if names == ("choices",):
            checked[key] = values.model_copy(update={"choices": tuple(found)})
        elif all(isinstance(each, int | float) and each is not True for each in found):
            checked[key] = values.model_copy(update=dict(zip(names, found, strict=True)))
        else:
            raise ConfigError(f"{path}: space: {key}: is no number; give choices")
    return search.model_copy(update={"space": checked})
