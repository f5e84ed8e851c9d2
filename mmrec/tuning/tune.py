"""`mmrec tune`: tries settings on validation, one trial after the other, and keeps what came out.

    FOLDER/tune.json        what is searched, on what; another search in this folder is refused
    FOLDER/study.db         every trial, as Optuna keeps them
    FOLDER/trials/0003/     each trial's run; checkpoints of the best one only
    FOLDER/trials.jsonl     one object a trial
    FOLDER/trials.md        the same as a table, best first, for docs/log.md
    FOLDER/best.yaml        the best settings, complete

A search that was killed goes on by the same command. Test targets are never read.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.shards import PreparedData
from mmrec.config import Config, change, dump_config, parse_config
from mmrec.errors import CheckpointMismatch, ConfigError, NonFiniteLoss, UserError
from mmrec.training.train import Progress, train
from mmrec.tuning.space import Search
from mmrec.tuning.study import Attempt, Study, TrialRecord, best_of, import_optuna

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(frozen=True)
class Outcome:
    """What a search has found so far."""

    objective: str
    trials: list[TrialRecord]
    best: TrialRecord | None
    best_config: Path | None

    def line(self) -> str:
        """One line for a person."""
        states = [trial.state for trial in self.trials]
        counts = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
        if self.best is None:
            return f"{len(states)} trials ({counts}): none is complete"
        settings = ", ".join(f"{key}={_shown(each)}" for key, each in self.best.settings.items())
        return (
            f"{len(states)} trials ({counts}); best {self.objective} {self.best.value:.4f}, "
            f"trial {self.best.number}: {settings}; "
            f"next: mmrec train {self.best_config} --data DATA --run RUN"
        )


def tune(
    config: Config,
    search: Search,
    data_folder: Path,
    out: Path,
    *,
    num_trials: int = 20,
    hours: float | None = None,
    progress: Callable[[int, Progress], None] | None = None,
) -> Outcome:
    """Searches until a folder holds the wanted number of trials.

    Args:
        config: what each trial starts from; training.stop_on says which value is searched for.
        search: which settings are tried.
        data_folder: a prepared folder.
        out: the search's folder; new, empty, or with this same search.
        num_trials: trials in all, those of earlier calls included.
        hours: no trial begins later than this after the call.
        progress: called with a trial's number and where its training is.

    Raises:
        CheckpointMismatch: the folder holds another search, or something else.
        ConfigError: a setting does not fit the data.
        UserError: Optuna is missing, validation has no targets, or another process works there.
    """
    import_optuna()
    document = _document(config, search, data_folder)
    _open_folder(out, document)
    started = time.monotonic()
    with _alone(out), closing(Study(out / "study.db", search)) as study:
        while _left(study, num_trials):
            if hours is not None and time.monotonic() - started > 3600 * hours:
                logger.info("%g hours are over", hours)
                break
            attempt = study.attempt()
            _run(attempt, config, data_folder, out / "trials" / f"{attempt.number:04d}", progress)
            record = study.trials()[attempt.number]
            logger.info("trial %d: %s, %s", record.number, record.state, _shown(record.value))
            outcome = _write(out, config, document, study.trials())
            _drop_checkpoints(out, outcome)
        return _write(out, config, document, study.trials())


def _left(study: Study, num_trials: int) -> bool:
    trials = study.trials()
    return len(trials) < num_trials or any(trial.state == "running" for trial in trials)


def _run(
    attempt: Attempt,
    config: Config,
    data_folder: Path,
    run: Path,
    progress: Callable[[int, Progress], None] | None,
) -> None:
    """Trains one trial to its end, or to where it is not worth going on with."""
    try:
        settings = change(config, attempt.settings, f"trial {attempt.number}")
    except ConfigError as error:  # each value is allowed, but not beside the others
        attempt.fail(str(error))
        return
    show = None if progress is None else (lambda at: progress(attempt.number, at))
    try:
        state = train(
            settings, data_folder, run, resume=True, progress=show, after_look=attempt.look
        )
    except NonFiniteLoss as error:  # too high a rate, say: a finding, not the end of the search
        attempt.fail(str(error))
        return
    assert state.best_value is not None
    attempt.finish(
        state.best_value,
        epochs=state.epoch,
        last_epoch=settings.training.max_epochs,
        seconds=state.seconds,
    )


def _document(config: Config, search: Search, data_folder: Path) -> dict[str, Any]:
    """What a search is of.

    Raises:
        UserError: validation has no targets.
    """
    data = PreparedData.open(data_folder)
    split = data.split(config.data.split)
    if not split.targets("validation").height:
        raise UserError(
            f"split {split.name} has no validation targets, and a search needs them: prepare one "
            "of another protocol"
        )
    return {
        "schema": SCHEMA,
        "objective": f"ndcg@10 {config.training.stop_on}",
        "data_hash": data.data_hash,
        "split": split.name,
        "split_hash": split.hash,
        "config": config.model_dump(mode="json"),
        "search": search.model_dump(mode="json"),
    }


def _open_folder(out: Path, document: dict[str, Any]) -> None:
    """Makes the search's folder, or checks that it holds this search.

    Raises:
        CheckpointMismatch: it does not.
    """
    path = out / "tune.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        # a newer version may know more settings
        known["config"] = parse_config(known["config"], str(path)).model_dump(mode="json")
        for key, value in document.items():
            if known.get(key) != value:
                raise CheckpointMismatch(
                    f"{path}: {key} is not what this folder's search was begun with; give the "
                    "same words to go on with it, or name a new folder"
                )
        return
    if out.exists() and any(out.iterdir()):
        raise CheckpointMismatch(f"{out}: holds something else than a search; name a new folder")
    out.mkdir(parents=True, exist_ok=True)
    _replace(path, json.dumps(document, indent=1) + "\n")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the folder: a second process would take running trials for interrupted ones."""
    with open(out / "tune.json", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is searching there; wait for it") from None
        yield


def _write(
    out: Path, config: Config, document: dict[str, Any], trials: list[TrialRecord]
) -> Outcome:
    """Writes trials.jsonl, trials.md and best.yaml anew."""
    best = best_of(trials)
    outcome = Outcome(
        document["objective"], trials, best, None if best is None else out / "best.yaml"
    )
    lines = [json.dumps(dataclasses.asdict(trial)) for trial in trials]
    _replace(out / "trials.jsonl", "".join(f"{line}\n" for line in lines))
    _replace(out / "trials.md", _table(config, document, trials))
    if best is not None:
        chosen = change(config, {**best.settings, "data.user_share": 1.0}, "best.yaml")
        _replace(
            out / "best.yaml",
            f"# Best of {len(trials)} trials: trial {best.number}, {outcome.objective} "
            f"{best.value:.4f} on validation at epoch {best.epoch}.\n"
            f"# Found on a share of {config.data.user_share:g} of the users; trains on all.\n#\n"
            f"#   mmrec train {out / 'best.yaml'} --data DATA --run RUN\n{dump_config(chosen)}",
        )
    return outcome


def _table(config: Config, document: dict[str, Any], trials: list[TrialRecord]) -> str:
    """All trials, best first, with what their figures are of."""
    keys = list(document["search"]["space"])
    head = ["trial", *keys, document["objective"], "best epoch", "epochs", "seconds", "state"]
    rows = [
        [trial.number, *(trial.settings.get(key) for key in keys), trial.value]
        + [trial.epoch, trial.epochs, trial.seconds and round(trial.seconds), trial.state]
        for trial in sorted(trials, key=lambda trial: -(trial.value or 0.0))
    ]
    about = (
        f"`mmrec tune`, `{config.name}`, validation of split {document['split']} "
        f"({document['split_hash'][:12]}), data {document['data_hash'][:12]}, "
        f"{config.data.user_share:g} of the users, at most {config.training.max_epochs} epochs, "
        f"seed {config.training.seed}\n\n"
    )
    lines = [head, ["---"] * len(head), *([_shown(cell) for cell in row] for row in rows)]
    return about + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _drop_checkpoints(out: Path, outcome: Outcome) -> None:
    """Frees the disk of what nobody will load: checkpoints of ended trials but the best."""
    for trial in outcome.trials:
        if trial.state != "running" and (outcome.best is None or trial != outcome.best):
            shutil.rmtree(out / "trials" / f"{trial.number:04d}" / "checkpoints", True)


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
