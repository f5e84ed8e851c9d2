"""The parts of the peers benchmark: plans that ship, processes, environments, and the table."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import yaml

from benchmarks.peers import environments, plan, process, table
from benchmarks.peers.exchange import CoreBudget

HERE = Path(plan.HERE)
SHIPPED = sorted(HERE.glob("*.yaml"))


def test_a_process_ends_at_its_limit(tmp_path: Path) -> None:
    ended = process.run_process(
        [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(60)"],
        log=tmp_path / "log",
        limit_s=1,
        environment=os.environ,
    )
    assert ended.reason == "ended after 0 minutes" and ended.seconds < 30 and ended.peak_gb > 0


def test_a_process_ends_when_the_benchmark_does(tmp_path: Path) -> None:
    stop, log = threading.Event(), tmp_path / "log"
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    threading.Timer(1.5, stop.set).start()
    with pytest.raises(process.Interrupted):
        process.run_process(
            [sys.executable, "-c", code],
            log=log,
            limit_s=60,
            environment=os.environ,
            stop=stop,
        )
    assert not psutil.pid_exists(int(log.read_text()))


@pytest.mark.parametrize("ours", [True, False])
def test_every_arm_is_told_to_keep_its_buffers(ours: bool) -> None:
    """A library that gained from it alone would be flattered."""
    told = process.child_environment(threads=3, ours=ours, root=HERE)
    assert process.KEEP_BUFFERS.items() <= told.items() and told["OMP_NUM_THREADS"] == "3"
    plain = process.child_environment(threads=3, ours=ours, root=HERE, keep_buffers=False)
    assert not process.KEEP_BUFFERS.keys() & plain.keys()


def test_what_a_peers_environment_compiles_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each arm compiles a whole library anew, and half a minute counts as its training."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    told = process.child_environment(threads=1, ours=False, root=HERE)
    assert "PYTHONDONTWRITEBYTECODE" not in told and "PYTHONPATH" not in told


def test_a_budget_counts_processor_time() -> None:
    budget = CoreBudget(0.05)
    time.sleep(0.1)
    assert not budget.spent()  # waiting for a turn takes nothing from a peer
    until = time.process_time() + 0.06
    while time.process_time() < until:
        pass
    assert budget.spent()


def test_an_environment_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = tmp_path / "fake.txt"
    requirements.write_text("fake==1.0\n")
    asked: list[list[str]] = []
    reason: list[str | None] = [None]

    def pretend(command: list[Any], **_: Any) -> process.Ended:
        asked.append([str(part) for part in command])
        if "venv" in asked[-1]:
            command[-1].mkdir(parents=True)
        return process.Ended(1.0, 0.1, 1.0, reason[0])

    monkeypatch.setattr(environments, "run_process", pretend)
    with ThreadPoolExecutor(2) as pool:
        build = partial(environments.build_environment, threads=1)
        both = pool.map(build, [requirements] * 2, [tmp_path / "cache"] * 2)
    python, again = both
    assert python == again and python.parent.parent.name.startswith("fake-")
    assert asked[0][1:3] == ["-m", "venv"] and asked[1][-1] == str(requirements)
    environments.build_environment(requirements, tmp_path / "cache", threads=1)
    assert len(asked) == 2
    requirements.write_text("fake==1.1\n")
    reason[0] = "no matching distribution"
    with pytest.raises(environments.EnvironmentFailed, match="fake: no matching distribution"):
        environments.build_environment(requirements, tmp_path / "cache", threads=1)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_plans_that_ship_are_whole(path: Path) -> None:
    found = plan.load_plan(path)
    for arm in found.arms:
        assert all(file.is_file() for file in arm.files()), arm.name
        assert arm.minutes > 0 and arm.origin
        if arm.peer not in (plan.FLOORS, plan.OURS):
            lines = plan.requirements_of(arm.peer).read_text().split()
            assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line) for line in lines)
    peers = {arm.peer for arm in found.arms}
    assert peers >= {"implicit", "rectools", "replay", "recbole", "cornac", "floors", "mmrec"}


def test_a_typo_in_a_plan_is_named(tmp_path: Path) -> None:
    document = yaml.safe_load(SHIPPED[0].read_text())
    document["arms"][0]["mintues"] = 3
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(plan.PlanError, match="unknown key 'mintues'"):
        plan.load_plan(path)


def test_an_arm_that_has_not_run_is_not_called_broken(tmp_path: Path) -> None:
    found = plan.load_plan(HERE / "quick.yaml")
    document = table.write_results(found, found.arms[:1], tmp_path, seeds=(0,), machine={})
    assert document["tables"][0]["rows"][0]["reason"] is None
    assert "| random | not run yet |" in (tmp_path / "results.md").read_text()


def test_several_seeds_show_their_deviation() -> None:
    ranks = [
        pl.DataFrame(
            {
                "model": ["m"] * 2,
                "user_id": ["a", "b"],
                "item_id": ["i", "j"],
                "slice": ["warm"] * 2,
                "rank": rank,
            }
        )
        for rank in ([1.0, 11.0], [1.0, 10.0])
    ]
    found = table.figures(ranks, "m", "warm")["hr@10"]
    assert found["mean"] == 0.75 and found["deviation"] == pytest.approx(np.std([0.5, 1], ddof=1))
    assert (found["low"], found["high"]) == (0.5, 1.0)
