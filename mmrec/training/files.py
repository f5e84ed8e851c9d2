"""What a run writes beside its checkpoints: settings, the data it is bound to, its metrics."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmrec.build import Assembly
from mmrec.config import Config, dump_config
from mmrec.errors import CheckpointMismatch
from mmrec.run_config import load_run_config
from mmrec.training.checkpoint import SCHEMA, TrainState
from mmrec.training.trackers import flatten, open_trackers


class NoLog:
    """Of a rank that writes nothing."""

    def write(self, record: dict[str, Any]) -> None:
        """Drop the record."""

    def close(self) -> None:
        """Nothing is open."""


class MetricsLog:
    """metrics.jsonl, cut back to what the checkpoint had written, and the trackers it feeds."""

    def __init__(self, run: Path, config: Config, state: TrainState) -> None:
        self.path = path = run / "metrics.jsonl"
        path.touch()
        sent = path.read_bytes()[state.metrics_bytes :].count(b"\n")
        os.truncate(path, min(state.metrics_bytes, path.stat().st_size))
        self.file = open(path, "a", encoding="utf-8")
        finished = state.finished  # nothing comes any more
        self.trackers = [] if finished else open_trackers(config, run, step=state.step, sent=sent)

    def write(self, record: dict[str, Any]) -> None:
        """Add a line, and tell the trackers."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        for tracker in self.trackers:
            tracker.log(record["step"], flatten(record))

    def close(self) -> None:
        """Close the file and the trackers."""
        self.file.close()
        for tracker in self.trackers:
            tracker.close()

    def flush(self) -> int:
        """Bytes written, all of them on disk."""
        for tracker in self.trackers:
            tracker.flush()
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.path.stat().st_size


def catalogue_folder(run: Path, name: str) -> Path:
    """Where one of several catalogues has a run that stands for itself."""
    return run / "catalogues" / name


def split_metrics(run: Path, name: str) -> None:
    """Writes a catalogue's part of metrics.jsonl into its folder, as it would be alone."""
    records = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.pop("catalogue", None) == name:
            records.append(record)
        elif "validation" in record and name in record["validation"]:
            records.append(record | {"validation": record["validation"][name]})
    path = catalogue_folder(run, name) / "metrics.jsonl"
    aside = path.with_suffix(".partial")
    aside.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    os.replace(aside, path)


def check_run(run: Path, config: Config, resume: bool) -> None:
    """Refuses a folder that holds another run; a run that could not begin leaves none."""
    path = run / "config.yaml"
    if not path.exists():
        return
    if not resume:
        raise CheckpointMismatch(
            f"{run}: holds a run already; add --resume to go on with it, or name a new folder"
        )
    # values, not text: a newer version may know more settings
    if _whoever_trains(load_run_config(path)) != _whoever_trains(config):
        raise CheckpointMismatch(
            f"{path}: differs from the settings given; resume with the run's own config.yaml"
        )


def _whoever_trains(config: Config) -> Config:
    """The settings without how the ranks share the work, which a resumed run may change."""
    training = config.training.model_copy(update={"sharding": "none"})
    return config.model_copy(update={"training": training})


def open_run(run: Path, config: Config) -> None:
    """Creates the run folder with the settings in it."""
    run.mkdir(parents=True, exist_ok=True)
    aside = run / "config.partial"
    aside.write_text(dump_config(config), encoding="utf-8")
    os.replace(aside, run / "config.yaml")


def bind_data(run: Path, assembly: Assembly) -> None:
    """Writes data.json, or checks that the run was begun on this data."""
    path = run / "data.json"
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "path": str(assembly.data.path.resolve()),
        "data_hash": assembly.data.data_hash,
        "split": assembly.split.name,
        "split_hash": assembly.split.hash,
    }
    if assembly.config.data.event_share < 1:
        document["event_share"] = assembly.config.data.event_share
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        for key in ("data_hash", "split_hash"):
            if known[key] != document[key]:
                raise CheckpointMismatch(
                    f"{assembly.data.path}: {key} is {document[key][:12]}, the run in {run} was "
                    f"begun on {known[key][:12]}; give --data the folder it was begun on"
                )
        return
    aside = path.with_suffix(".partial")
    aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, path)
