"""`mmrec tune`: what is tried, what an interruption leaves, what is refused, what is never read."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from data_prep.shards import Split
from mmrec import build
from mmrec.cli import main
from mmrec.config import Config, dump_config, load_config, parse_config
from mmrec.errors import CheckpointMismatch, NonFiniteLoss, UserError
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import load_run
from mmrec.training import final
from mmrec.training import train as training
from mmrec.training.calibrate import NewItems
from mmrec.training.train import Progress, train
from mmrec.training.validate import Validation
from mmrec.tuning import tune as tuning
from mmrec.tuning.space import Search, load_search
from mmrec.tuning.study import Study
from mmrec.tuning.tune import Outcome, tune

pytest_plugins = ["tiny_run"]

ROOT = Path(__file__).resolve().parent.parent

SPACE: dict[str, Any] = {
    "training.learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    "model.history.num_blocks": {"low": 1, "high": 2},
    "model.history.block": {"choices": ["gated", "plain"]},
}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Training sets torch to deterministic algorithms, the command line sets up logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    for name in ("data_prep", "encoders", "fusion", "mmrec"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def optuna() -> None:
    pytest.importorskip("optuna")


def configure(**training: Any) -> Config:
    from tiny_run import tiny_config

    document = tiny_config("id").model_dump(mode="json")
    document["training"] |= {"log_every": 1, **training}
    document["data"]["user_share"] = 0.7
    return parse_config(document)


def search(path: Path, config: Config, space: Any = SPACE, **changes: Any) -> Search:
    path.write_text(json.dumps({"halving": None, "random_trials": 2, "space": space, **changes}))
    return load_search(path, config)


def settings_of(outcome: Outcome) -> list[tuple[Any, ...]]:
    return [(t.settings, t.value, t.state, t.epoch, t.epochs) for t in outcome.trials]


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def test_three_trials_and_the_best_trains(
    optuna: None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no test target is read on the way."""
    read = Split.targets

    def targets(self: Split, which: str) -> pl.DataFrame:
        assert which == "validation", "a search reads test targets"
        return read(self, which)

    def cases(data: Any, split: Split, which: Any) -> Any:
        assert which == "validation", "a search reads test targets"
        return load_cases(data, split, which)

    monkeypatch.setattr(Split, "targets", targets)
    monkeypatch.setattr(build, "load_cases", cases)
    config, out = configure(), tmp_path / "search"
    wanted = search(tmp_path / "space.yaml", config)
    outcome = tune(config, wanted, tiny_data, out, num_trials=3)
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    assert [line["number"] for line in lines] == [0, 1, 2]
    assert {line["state"] for line in lines} == {"complete"}
    assert all(set(line["settings"]) == set(SPACE) and line["seconds"] > 0 for line in lines)
    assert len({line["settings"]["training.learning_rate"] for line in lines}) == 3
    assert all(isinstance(line["settings"]["model.history.num_blocks"], int) for line in lines)
    best = outcome.best
    assert best is not None and best.value == max(line["value"] for line in lines)
    # a trial's value is the best look of its run
    run = out / "trials" / f"{best.number:04d}"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = {r["epoch"]: r["validation"]["warm"]["ndcg@10"] for r in records if "validation" in r}
    assert best.value == max(looks.values()) and looks[best.epoch or 0] == best.value
    # checkpoints of the best one only
    kept = [path.parent.name for path in (out / "trials").glob("*/checkpoints")]
    assert kept == [run.name]
    # the table has them best first
    rows = (out / "trials.md").read_text().splitlines()[4:]
    values = [float(row.split(" | ")[4]) for row in rows]
    assert len(rows) == 3 and values == sorted(values, reverse=True)
    chosen = load_config(out / "best.yaml")
    assert chosen.training.learning_rate == best.settings["training.learning_rate"]
    assert chosen.data.user_share == 1.0
    train(chosen, tiny_data, tmp_path / "run")
    # a finished search stays as it is, and goes on where more trials are asked for
    again = tune(config, wanted, tiny_data, out, num_trials=3)
    assert settings_of(again) == settings_of(outcome)
    assert len(tune(config, wanted, tiny_data, out, num_trials=4).trials) == 4


@pytest.mark.parametrize("kind", ["midst", "told"])
def test_interrupted_search_equals_the_unbroken(
    kind: str, optuna: None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the midst of trial 1, or when its training is over but nobody has been told."""
    config = configure(max_epochs=3)
    wanted = search(tmp_path / "space.yaml", config)
    whole = tune(config, wanted, tiny_data, tmp_path / "whole", num_trials=4)
    broken = tmp_path / "broken"

    def stop(number: int, at: Progress) -> None:
        if number == 1 and at.epoch == 1:
            raise Killed

    def kill(self: Any, *_: Any, **__: Any) -> None:
        if self.number == 1:
            raise Killed
        finish(self, *_, **__)

    finish = tuning.Attempt.finish
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if kind == "told":
            patch.setattr(tuning.Attempt, "finish", kill)
        progress = stop if kind == "midst" else None
        tune(config, wanted, tiny_data, broken, num_trials=4, progress=progress)
    lines = (broken / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    states = [json.loads(line)["state"] for line in lines]
    assert states == ["complete"]
    assert list((broken / "trials" / "0001" / "checkpoints").glob("step-*"))
    again = tune(config, wanted, tiny_data, broken, num_trials=4)
    assert settings_of(again) == settings_of(whole)


def test_trials_behind_at_a_rung_are_pruned(
    optuna: None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(max_epochs=3, patience=9)
    space = {"training.learning_rate": {"choices": [0.001, 0.002]}}
    wanted = search(
        tmp_path / "space.yaml",
        config,
        space,
        halving={"first_epochs": 1, "factor": 2},
        random_trials=99,
    )

    looks = itertools.count()

    def look(assembly: Any, *, precision: str) -> Validation:
        good = assembly.config.training.learning_rate == 0.002
        # each worse than those before it: of equals the better half may hold any
        value = 0.2 if good else 0.1 - 0.001 * next(looks)
        metrics: dict[str, dict[str, float] | None] = {"warm": {"ndcg@10": value, "hr@10": 0.0}}
        return Validation(metrics, None, torch.zeros(0), torch.zeros(0))

    monkeypatch.setattr(training, "validate", look)
    monkeypatch.setattr(final, "validate", look)
    monkeypatch.setattr(final, "choose_for_new", lambda *_: NewItems())
    outcome = tune(config, wanted, tiny_data, tmp_path / "search", num_trials=8)
    good = [t for t in outcome.trials if t.settings["training.learning_rate"] == 0.002]
    behind = [t for t in outcome.trials if t not in good and any(g.number < t.number for g in good)]
    assert good and behind
    assert all((t.state, t.epochs) == ("pruned", 1) for t in behind)
    assert all(t.state == "complete" for t in good[:1]) and outcome.best in good
    assert "pruned" in outcome.line()


def test_stopping_after_a_look_leaves_a_whole_run(tiny_data: Path, tmp_path: Path) -> None:
    looks: list[tuple[int, float]] = []

    def stop(epoch: int, value: float) -> bool:
        looks.append((epoch, value))
        return epoch == 2

    config = configure(max_epochs=9)
    state = train(config, tiny_data, tmp_path, after_look=stop)
    assert [epoch for epoch, _ in looks] == [1, 2]
    assert (state.epoch, state.finished) == (2, True)
    assert state.best_value == max(value for _, value in looks)
    assert load_run(tmp_path).state["epochs_trained"] == 2
    assert train(config, tiny_data, tmp_path, resume=True).epoch == 2


def test_a_decision_to_stop_outlives_a_kill(optuna: None, tmp_path: Path) -> None:
    wanted = search(tmp_path / "space.yaml", configure(), halving={"first_epochs": 1, "factor": 2})
    path = tmp_path / "study.db"
    study = Study(path, wanted)
    first = study.attempt()
    assert not first.look(1, 0.5)
    first.finish(0.5, epochs=4, last_epoch=4, seconds=1.0)
    second = study.attempt()
    assert second.look(1, 0.1)
    study.close()  # and here the process is killed
    study = Study(path, wanted)
    again = study.attempt()
    assert (again.number, again.settings) == (second.number, second.settings)
    assert again.look(1, 0.1)
    again.finish(0.1, epochs=1, last_epoch=4, seconds=1.0)
    assert [trial.state for trial in study.trials()] == ["complete", "pruned"]
    study.close()


def test_a_trial_that_diverges_or_contradicts_itself_has_failed(
    optuna: None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise NonFiniteLoss("step 3: loss nan")

    config = configure()
    space = {"model.width": {"choices": [12, 16]}, "model.history.num_heads": {"choices": [2, 4]}}
    wanted = search(tmp_path / "space.yaml", config, space, seed=1)
    monkeypatch.setattr(tuning, "train", diverge)
    outcome = tune(config, wanted, tiny_data, tmp_path / "search", num_trials=8)
    assert {trial.state for trial in outcome.trials} == {"failed"} and outcome.best is None
    reasons = {str(trial.reason).partition(":")[2].strip()[:11] for trial in outcome.trials}
    assert reasons == {"loss nan", "model.width"}
    assert not (tmp_path / "search" / "best.yaml").exists()
    assert "none is complete" in outcome.line()


def test_user_models_without_attention_are_tried_too(
    optuna: None, tiny_data: Path, tmp_path: Path
) -> None:
    document = configure(max_epochs=1).model_dump(mode="json")
    document["model"]["history"] |= {"block": "gru", "num_heads": 3}  # not of a width of 16
    config = parse_config(document)
    space = {"model.history.block": {"choices": ["gru", "cnn"]}}
    wanted = search(tmp_path / "space.yaml", config, space, random_trials=4, seed=1)
    outcome = tune(config, wanted, tiny_data, tmp_path / "search", num_trials=4)
    assert {trial.state for trial in outcome.trials} == {"complete"}
    assert {trial.settings["model.history.block"] for trial in outcome.trials} == {"gru", "cnn"}


def test_hours_end_a_search(optuna: None, tiny_data: Path, tmp_path: Path) -> None:
    config = configure()
    wanted = search(tmp_path / "space.yaml", config)
    assert not tune(config, wanted, tiny_data, tmp_path / "search", hours=0).trials


def test_a_folder_of_another_search_is_refused(
    optuna: None, tiny_data: Path, tmp_path: Path
) -> None:
    config, out = configure(), tmp_path / "search"
    wanted = search(tmp_path / "space.yaml", config)
    tune(config, wanted, tiny_data, out, num_trials=1)
    other = search(tmp_path / "space.yaml", config, seed=5)
    with pytest.raises(CheckpointMismatch, match="search is not what this folder's"):
        tune(config, other, tiny_data, out, num_trials=1)
    with pytest.raises(CheckpointMismatch, match="config is not what this folder's"):
        tune(configure(seed=5), wanted, tiny_data, out, num_trials=1)
    with pytest.raises(CheckpointMismatch, match="holds something else than a search"):
        tune(config, wanted, tiny_data, tmp_path, num_trials=1)
    with tuning._alone(out), pytest.raises(UserError, match="another process"):
        tune(config, wanted, tiny_data, out, num_trials=2)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"training.learning_rat": {"low": 1, "high": 2}}, "did you mean 'learning_rate'"),
        ({"model.histry.dropout": {"low": 0.1, "high": 0.2}}, "did you mean 'history'"),
        ({"training.learning_rate": {"lo": 1, "high": 2}}, "did you mean 'low'"),
        ({"training.learning_rate": {"low": "small", "high": 2}}, "small"),
        ({"training.learning_rate": {"low": 2, "high": 1}}, "low 2 must be below high 1"),
        ({"training.learning_rate": {"low": 1}}, "both low and high"),
        ({"training.learning_rate": {"low": 0, "high": 1, "log": True}}, "above 0"),
        ({"training.learning_rate": {"low": -1, "high": 1}}, "training.learning_rate: -1"),
        ({"training.batch_size": {"low": 0.5, "high": 8}}, "training.batch_size: 0.5"),
        ({"model.history.block": {"choices": []}}, "two different values"),
        ({"model.history.block": {"choices": ["plain", "plian"]}}, "plian"),
        ({"model.history.block": {"low": 1, "high": 2}}, "model.history.block: 1"),
        ({"training.stop_on": {"choices": ["warm", "cold"]}}, "cannot be searched"),
        ({}, "space"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_wrong_space_is_one_line(
    space: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, which ends with 2 and leaves no folder."""
    config, path = tmp_path / "run.yaml", tmp_path / "space.yaml"
    config.write_text(dump_config(configure()))
    path.write_text(json.dumps({"space": space}))
    out = tmp_path / "search"
    words = ["tune", str(config), "--data", str(tmp_path), "--out", str(out), "--space", str(path)]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert says in captured.err and "space.yaml" in captured.err
    assert not out.exists()


def test_values_are_as_the_settings_have_them(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "space:\n"
        "  training.learning_rate: {low: 1e-4, high: 1}\n"  # the first is a string to YAML
        "  training.weight_decay: {choices: [1e-2, 0]}\n"
        "  training.batch_size: {low: 8.0, high: 16.0}\n"
    )
    space = load_search(path, configure()).space
    rate, decay, size = space.values()
    assert (rate.low, rate.high, type(rate.high)) == (1e-4, 1.0, float)
    assert decay.choices == (0.01, 0.0)
    assert (size.low, size.high, type(size.low)) == (8, 16, int)


def test_missing_optuna_is_told(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    config, path = tmp_path / "run.yaml", tmp_path / "space.yaml"
    config.write_text(dump_config(configure()))
    path.write_text(json.dumps({"space": SPACE}))
    words = ["tune", str(config), "--space", str(path), "--data", str(tiny_data)]
    assert main([*words, "--out", str(tmp_path / "search")]) == 2
    assert "pip install 'mmrec[tune]'" in capsys.readouterr().err


def test_command(
    optuna: None, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, path, out = (tmp_path / name for name in ("run.yaml", "space.yaml", "search"))
    config.write_text(dump_config(configure()))
    path.write_text(json.dumps({"space": SPACE}))
    words = ["tune", str(config), "--space", str(path), "--data", str(tiny_data)]
    words += ["--out", str(out), "--trials", "1", "training.max_epochs=1"]
    assert main(words) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith("1 trials (1 complete); best ndcg@10 warm")
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["best"] == document["trials"][0]
    assert document["best_config"] == str(out / "best.yaml")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "tune").glob("*.yaml")), ids=lambda path: path.stem
)
def test_spaces_that_come_with_mmrec_are_sound(path: Path) -> None:
    search = load_search(path, load_config(ROOT / "configs" / "movielens-1m-id.yaml"))
    assert search.space
