"""The trials of a search, kept in a database by Optuna; the only file that knows Optuna.

A killed search goes on: a trial that was running is taken up first, with its settings and what was
already reported of it. Each trial's draw depends on the search's seed, its number and the trials
before it alone, so a search that was interrupted tries what the unbroken one would have tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from mmrec.errors import UserError
from mmrec.tuning.space import Range, Search

State = Literal["complete", "pruned", "failed", "running"]
# When a trial was told to stop: a decision that a kill before its end must not undo.
_STOPPED = "stopped_at"


@dataclass(frozen=True)
class TrialRecord:
    """What came out of a trial.

    value: best value of its looks; None where there was none.
    epoch: of the best value.
    epochs: trained, as far as was looked at.
    seconds: of training.
    reason: why it failed.
    """

    number: int
    state: State
    value: float | None
    epoch: int | None
    epochs: int
    seconds: float | None
    settings: dict[str, Any]
    reason: str | None


class Attempt:
    """A trial under way."""

    def __init__(self, study: Any, trial: Any, settings: dict[str, Any]) -> None:
        self._study, self._trial = study, trial
        self.number: int = trial.number
        self.settings = settings
        self._looks = set(study.trials[self.number].intermediate_values)

    def look(self, epoch: int, value: float) -> bool:
        """Reports a look at validation; True where the trial is not worth going on with."""
        stopped_at = self._trial.user_attrs.get(_STOPPED)
        if stopped_at is not None:
            return bool(epoch >= stopped_at)
        if epoch not in self._looks:  # a resumed trial repeats looks after its last checkpoint
            self._trial.report(value, epoch)
            self._looks.add(epoch)
        if not self._trial.should_prune():
            return False
        self._trial.set_user_attr(_STOPPED, epoch)
        return True

    def finish(self, value: float, *, epochs: int, last_epoch: int, seconds: float) -> None:
        """The trial was trained to its end, or to where it was told to stop.

        Args:
            value: its best.
            epochs: trained.
            last_epoch: where training would have ended: a trial that came so far is complete.
            seconds: of training.
        """
        from optuna.trial import TrialState

        self._trial.set_user_attr("seconds", round(seconds, 3))
        if self._trial.user_attrs.get(_STOPPED) is not None and epochs < last_epoch:
            self._study.tell(self._trial, state=TrialState.PRUNED)
        else:
            self._study.tell(self._trial, value)

    def fail(self, reason: str) -> None:
        """The trial gave nothing; the search goes on."""
        from optuna.trial import TrialState

        self._trial.set_user_attr("reason", reason)
        self._study.tell(self._trial, state=TrialState.FAIL)


class Study:
    """All trials of a search.

    Args:
        path: the database; made where it is not.
        search: what is searched.
    """

    def __init__(self, path: Path, search: Search) -> None:
        optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._search = optuna, search
        halving = search.halving
        pruner = optuna.pruners.NopPruner()
        if halving is not None:
            pruner = optuna.pruners.SuccessiveHalvingPruner(
                min_resource=halving.first_epochs, reduction_factor=halving.factor
            )
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
        self._study = optuna.create_study(
            storage=self._storage,
            study_name="mmrec",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )

    def attempt(self) -> Attempt:
        """The trial that was interrupted, or a new one."""
        running = self._optuna.trial.TrialState.RUNNING
        interrupted = self._study.get_trials(deepcopy=False, states=(running,))
        trials = self._study.get_trials(deepcopy=False)
        number = interrupted[0].number if interrupted else len(trials)
        seed = np.random.SeedSequence((self._search.seed, number)).generate_state(1)[0]
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=int(seed), n_startup_trials=self._search.random_trials
        )
        if interrupted:
            trial = self._optuna.trial.Trial(self._study, interrupted[0]._trial_id)
        else:
            trial = self._study.ask()
        settings = {key: _draw(trial, key, values) for key, values in self._search.space.items()}
        return Attempt(self._study, trial, settings)

    def trials(self) -> list[TrialRecord]:
        """Every trial so far, in order."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def close(self) -> None:
        """Lets go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def best_of(trials: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial with the largest value; the first of equals."""
    complete = [trial for trial in trials if trial.state == "complete"]
    return max(complete, key=lambda trial: trial.value or 0.0, default=None)


def import_optuna() -> ModuleType:
    """Optuna.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError(
            "mmrec tune needs Optuna, which is not installed: pip install 'mmrec[tune]'"
        ) from None
    return optuna


def _draw(trial: Any, key: str, values: Range) -> Any:
    """The value of a setting in a trial; the one drawn before where it was interrupted."""
    if values.choices is not None:
        return trial.suggest_categorical(key, values.choices)
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    draw = trial.suggest_int if whole else trial.suggest_float
    return draw(key, values.low, values.high, log=values.log)


def _record(trial: Any) -> TrialRecord:
    looks: Mapping[int, float] = trial.intermediate_values
    epoch = min(looks, key=lambda at: (-looks[at], at), default=None)
    names: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    return TrialRecord(
        number=trial.number,
        state=names.get(trial.state.name, "running"),
        value=None if epoch is None else looks[epoch],
        epoch=epoch,
        epochs=max(looks, default=0),
        seconds=trial.user_attrs.get("seconds"),
        settings=dict(trial.params),
        reason=trial.user_attrs.get("reason"),
    )
