"""Trackers: what they are given, what a resumed run repeats, and that nothing is on by default."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mmrec.config import Config, parse_config
from mmrec.errors import UserError
from mmrec.training.trackers import flatten
from mmrec.training.train import Progress, train

pytest_plugins = ["tiny_run"]

PACKAGES = ("tensorboard", "torch.utils.tensorboard", "wandb", "mlflow")


@pytest.fixture(autouse=True)
def restored_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests asks for nothing."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    # set by the trackers where it is not: monkeypatch takes them away again
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def configure(*trackers: str, **changes: Any) -> Config:
    from tiny_run import tiny_config

    document = tiny_config("id").model_dump(mode="json")
    document["training"] |= {
        "log_every": 1,
        "max_steps": 8,
        "max_epochs": 9,
        "checkpoint_every": 3,
        "trackers": trackers,
        **changes,
    }
    return parse_config(document)


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def train_broken(config: Config, data: Path, run: Path, step: int) -> None:
    """Trains, is killed at a step after a checkpoint, and goes on to the end."""

    def stop(at: Progress) -> None:
        if at.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(config, data, run, progress=stop)
    train(config, data, run, resume=True)


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_flatten() -> None:
    record = {
        "step": 3,
        "epoch": 1,
        "loss": 0.5,
        "validation": {"warm": {"ndcg@10": 0.25, "hr@10": 1}, "cold": None},
    }
    assert flatten(record) == {
        "loss": 0.5,
        "validation/warm/ndcg_at_10": 0.25,
        "validation/warm/hr_at_10": 1.0,
    }


def test_nothing_is_on_by_default(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    train(configure(), tiny_data, tmp_path)
    assert not {"tensorboard", "wandb", "mlflow"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_missing_package_is_told_before_the_run_begins(
    name: str, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        train(configure(name), tiny_data, tmp_path / "run")
    message = str(caught.value)
    assert f"pip install 'mmrec[{name}]'" in message and "\n" not in message
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_records_once(tiny_data: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_broken(configure("tensorboard"), tiny_data, tmp_path, 5)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    records = [(each["step"], flatten(each)) for each in records_of(tmp_path)]
    for name in ("loss", "learning_rate", "validation/warm/ndcg_at_10"):
        wanted = {step: values[name] for step, values in records if name in values}
        found = events.Scalars(name)
        assert [each.step for each in found] == list(wanted)
        assert [each.value for each in found] == pytest.approx(list(wanted.values()))
    assert [step for step, values in records if "loss" in values] == list(range(1, 9))


class FakeWandb(ModuleType):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("mode", [None, "online"], ids=["default", "asked"])
def test_wandb_is_offline_unless_asked_and_gets_no_step_twice(
    mode: str | None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    train_broken(configure("wandb"), tiny_data, tmp_path, 5)
    assert [each["mode"] for each in fake.begun] == [mode or "offline"] * 2
    assert [each["resume"] for each in fake.begun] == ["allow" if mode else None] * 2
    assert fake.begun[0]["id"] == fake.begun[1]["id"]
    assert fake.begun[0]["config"]["training"]["max_steps"] == 8
    assert fake.rows == [(each["step"], flatten(each)) for each in records_of(tmp_path)]
    assert fake.finished == 2  # closed on the way out of the killed one too


class FakeMlflow:
    """Stands for `mlflow.tracking.MlflowClient`; one store for all clients."""

    uris: list[str] = []
    metrics: list[tuple[str, float, int, int]] = []
    params: dict[str, Any] = {}
    statuses: list[str] = []

    def __init__(self, tracking_uri: str) -> None:
        self.uris.append(tracking_uri)

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "mmrec"

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        return "1"

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="run-1"))

    def log_param(self, run_id: str, name: str, value: Any) -> None:
        assert name not in self.params, "a parameter is logged once"
        self.params[name] = value

    def log_batch(self, run_id: str, metrics: list[tuple[str, float, int, int]]) -> None:
        assert run_id == "run-1"
        self.metrics.extend(metrics)

    def update_run(self, run_id: str, status: str) -> None:
        self.statuses.append(status)

    def set_terminated(self, run_id: str) -> None:
        self.statuses.append("FINISHED")


@pytest.mark.parametrize("uri", [None, "http://127.0.0.1:1"], ids=["default", "asked"])
def test_mlflow_stays_in_the_run_unless_asked_and_gets_no_step_twice(
    uri: str | None, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client(FakeMlflow):
        uris, metrics, params, statuses = [], [], {}, []  # noqa: RUF012

    def metric(*values: Any) -> tuple[Any, ...]:
        return values

    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=metric))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", SimpleNamespace(MlflowClient=Client))
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    train_broken(configure("mlflow"), tiny_data, tmp_path, 5)
    inside = f"sqlite:///{(tmp_path / 'mlflow' / 'mlflow.db').resolve()}"
    assert Client.uris == [uri or inside] * 2
    assert Client.params["training.max_steps"] == 8
    assert Client.statuses == ["FINISHED", "RUNNING", "FINISHED"]
    assert max(Counter((name, step) for name, _, _, step in Client.metrics).values()) == 1
    losses = [(step, value) for name, value, _, step in Client.metrics if name == "loss"]
    assert losses == [
        (each["step"], each["loss"]) for each in records_of(tmp_path) if "loss" in each
    ]
