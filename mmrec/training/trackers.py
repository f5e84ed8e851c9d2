"""Experiment trackers: the records of metrics.jsonl, shown elsewhere as well.

    training.trackers=[tensorboard]   RUN/tensorboard   tensorboard --logdir RUN
    training.trackers=[wandb]         RUN/wandb         offline, unless WANDB_MODE says otherwise
    training.trackers=[mlflow]        RUN/mlflow        unless MLFLOW_TRACKING_URI says otherwise

None is on unless asked for, and then nothing leaves the machine unless the environment asks for
that too. Each package is an extra, imported here alone. A resumed run repeats some of its records
bit for bit: TensorBoard hides the old ones, the others leave out those they were sent before.
"""

from __future__ import annotations

import importlib
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmrec.config import Config, dotted_settings, dump_config
from mmrec.errors import UserError

# What a tracker imports first, so that a missing package is told before anything is trained.
MODULES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class Tracker(Protocol):
    """Takes the records of a run, one after the other."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one record by name, such as `loss` or `validation/warm/ndcg_at_10`."""
        ...

    def flush(self) -> None:
        """Puts what was logged on disk; called before each checkpoint."""
        ...

    def close(self) -> None:
        """Ends the run's record."""
        ...


def flatten(record: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """What a record measures, without its step and epoch, which two records of a step may share.

    `@` becomes `_at_`: MLflow refuses it in names.

    Args:
        record: as metrics.jsonl has it.
        path: what names begin with.
    """
    values: dict[str, float] = {}
    for key, value in record.items():
        name = f"{path}{key}".replace("@", "_at_")
        if isinstance(value, Mapping):
            values |= flatten(value, f"{name}/")
        elif value is not None and name not in ("step", "epoch"):
            values[name] = float(value)
    return values


class TensorBoard:
    """Event files in RUN/tensorboard.

    Args:
        config: shown as text.
        run: the run's folder.
        step: of the checkpoint that the run goes on from; what was logged later is hidden.
    """

    def __init__(self, config: Config, run: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = step + 1 if step else None
        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=purge_step)
        if not step:
            self.writer.add_text("config", f"```yaml\n{dump_config(config)}```", 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """A killed run must have what its checkpoint goes on from."""
        self.writer.flush()

    def close(self) -> None:
        """Writes the rest."""
        self.writer.close()


class Wandb:
    """A run of Weights & Biases, kept in RUN/wandb for `wandb sync`.

    Project and mode are those of WANDB_PROJECT and WANDB_MODE where these are set.

    Args:
        config: becomes the run's config.
        run: the run's folder.
        sent: records that were sent before an interruption and come once more.
    """

    def __init__(self, config: Config, run: Path, *, sent: int) -> None:
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode != "online":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.sent = sent
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mmrec"),
            name=run.name,
            id=_remembered(run / "wandb" / "mmrec-run-id", uuid.uuid4().hex[:12]),
            dir=str(run.resolve()),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=config.model_dump(mode="json"),
            settings={"silent": True, "console": "off", "disable_git": True},
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A row; records of one step share it."""
        if self.sent:
            self.sent -= 1
        else:
            self.run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing: a process of its own writes the rows as they come."""

    def close(self) -> None:
        """Waits until all is written."""
        self.run.finish()


class Mlflow:
    """A run of MLflow, in RUN/mlflow/mlflow.db unless MLFLOW_TRACKING_URI is set.

    SQLite, since MLflow refuses to write plain files by now (3.17).

    Args:
        config: becomes the run's parameters, under their dotted names.
        run: the run's folder.
        sent: records that were sent before an interruption and come once more.
    """

    def __init__(self, config: Config, run: Path, *, sent: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        self.sent, self.metric = sent, Metric
        folder = (run / "mlflow").resolve()
        folder.mkdir(exist_ok=True)
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self.client: Any = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        known = folder / "mmrec-run-id"
        if known.exists():
            self.run_id = known.read_text(encoding="utf-8")
            self.client.update_run(self.run_id, status="RUNNING")
            return
        experiment = self.client.get_experiment_by_name("mmrec")
        experiment_id = (
            experiment.experiment_id
            if experiment is not None
            else self.client.create_experiment(
                "mmrec", artifact_location=None if uri else (folder / "artifacts").as_uri()
            )
        )
        created = self.client.create_run(experiment_id, run_name=run.name)
        for name, value in dotted_settings(config).items():
            self.client.log_param(created.info.run_id, name, value)
        self.run_id = _remembered(known, created.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A metric each."""
        if self.sent:
            self.sent -= 1
            return
        now = int(time.time() * 1000)
        metrics = [self.metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def flush(self) -> None:
        """Nothing: every record is written at once."""

    def close(self) -> None:
        """Marks the run as ended."""
        self.client.set_terminated(self.run_id)


def check_trackers(names: Sequence[str]) -> None:
    """Imports what the trackers need.

    Raises:
        UserError: a package is not installed.
    """
    for name in names:
        if name == "mlflow":  # it looks at this when it is imported
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            importlib.import_module(MODULES[name])
        except ImportError as error:
            raise UserError(
                f"training.trackers names {name}, which is not installed ({error}): "
                f"pip install 'mmrec[{name}]', or take it out of training.trackers"
            ) from None


def open_trackers(config: Config, run: Path, *, step: int, sent: int) -> list[Tracker]:
    """The trackers that a run's settings name.

    Args:
        config: of the run.
        run: its folder.
        step: of the checkpoint that it goes on from; 0 for a new run.
        sent: records that were written after that checkpoint, before an interruption.
    """
    make: dict[str, Any] = {
        "tensorboard": lambda: TensorBoard(config, run, step=step),
        "wandb": lambda: Wandb(config, run, sent=sent),
        "mlflow": lambda: Mlflow(config, run, sent=sent),
    }
    return [make[name]() for name in config.training.trackers]


def _remembered(path: Path, new: str) -> str:
    """The id in a file of the run, so that a resumed run goes on with it; else the new one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".partial")
        aside.write_text(new, encoding="utf-8")
        os.replace(aside, path)
    return path.read_text(encoding="utf-8")
