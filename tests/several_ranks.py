"""Processes that train together on gloo, as torchrun starts them: a plug-in of pytest.

pytest_plugins = ["tiny_run", "several_ranks"]
pytestmark = pytest.mark.usefixtures("nobody_left")
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrec.config import Config, change, dump_config
from mmrec.training.distributed import join_ranks

ROOT = Path(__file__).resolve().parent.parent
STARTED: list[subprocess.Popen[bytes]] = []


def configure(blocks: int | str = "all", **settings: Any) -> Config:
    """Without dropout, whose masks depend on the number of ranks; modalities are dropped."""
    from tiny_run import tiny_config

    quiet = {
        "model.history.dropout": 0.0,
        "model.fusion.dropout": 0.0,
        "model.fusion.feature_dropout": 0.0,
        "encoders.text.options.dropout": 0.0,
        "training.batch_size": 7,
        "training.fresh_items": 5,
        "training.log_every": 1,
    }
    return change(tiny_config(trainable_blocks=blocks), quiet | settings, "test")


def in_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function of a test module with (ranks, *arguments) in two processes.

    What it raises in one of them is raised here.
    """
    torch.multiprocessing.spawn(_as_rank, (free_port(), function, arguments), nprocs=2)


def _as_rank(rank: int, port: int, function: Callable[..., None], arguments: Any) -> None:
    os.environ |= environment_of(rank, 2, port)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with join_ranks() as ranks:
        function(ranks, *arguments)


def train_in_two_ranks(runs: Mapping[Path, tuple[Config, Any, int | None]]) -> None:
    """Trains run after run in the same two processes, which are slow to start.

    Args:
        runs: settings and data (of several catalogues by name) of each; and a step at which the run
            is copied as it is then, as if killed there, to a folder beside it, which is resumed.
    """
    ports = [free_port() for _ in range(2 * len(runs))]
    torch.multiprocessing.spawn(_train_each, (ports, dict(runs)), nprocs=2)


def train_here(config: Config, data: Any, run: Path, *, resume: bool = False) -> None:
    """Trains a run in this process, which has imported all of it already."""
    from mmrec.training.train import train

    train(config, data, run, resume=resume)
    torch.use_deterministic_algorithms(False)


def _train_each(
    rank: int, ports: list[int], runs: Mapping[Path, tuple[Config, Any, int | None]]
) -> None:
    from mmrec.training.train import Progress, train

    torch.set_num_threads(1)
    ports = list(reversed(ports))
    for run, (config, data, step) in runs.items():
        broken = broken_of(run)

        def copy(at: Progress, run: Path = run, step: int | None = step) -> None:
            if at.step == step:
                shutil.copytree(run, broken_of(run))

        os.environ |= environment_of(rank, 2, ports.pop())
        train(config, data, run, progress=copy)
        if step is not None:
            os.environ |= environment_of(rank, 2, ports.pop())
            train(config, data, broken, resume=True)


def broken_of(run: Path) -> Path:
    """Where `train_in_two_ranks` copies a run to."""
    return run.with_name(f"{run.name}-broken")


def environment_of(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(
    config: Config, data: Path | Mapping[str, Path], run: Path, world: int, *options: str
) -> list[Any]:
    """A process a rank, as torchrun starts them; of several catalogues data are by name."""
    path = run.parent / f"{run.name}.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    command = [sys.executable, "-m", "mmrec.cli", "train", str(path)]
    named = {"": data} if isinstance(data, Path) else {f"{name}=": data[name] for name in data}
    for name, folder in named.items():
        command += ["--data", f"{name}{folder}"]
    command += ["--run", str(run), *options]
    port, processes = free_port(), []
    for rank in range(world):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if world > 1:
            environment |= environment_of(rank, world, port)
        with open(run.parent / f"{run.name}-{rank}.log", "a") as log:
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
    STARTED.extend(processes)
    return processes


@pytest.fixture
def nobody_left() -> Iterator[None]:
    """No process outlives its test, whatever became of it."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()
    STARTED.clear()


def finish(processes: list[Any], run: Path) -> None:
    for rank, process in enumerate(processes):
        code = process.wait(timeout=300)
        assert code == 0, (run.parent / f"{run.name}-{rank}.log").read_text()[-2000:]


def losses_of(run: Path) -> list[list[float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    names = ("loss", "cold_loss", "alignment", "modality_loss", "query_loss", "variety_loss")
    return [[each.get(name, 0.0) for name in names] for each in lines if "loss" in each]


def all_losses_of(run: Path) -> list[dict[str, float]]:
    """Every loss of each step by its name, those of heads and labels too."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in each.items() if name.endswith("loss")}
        for each in lines
        if "loss" in each
    ]


def final_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "final" / "model.safetensors")
