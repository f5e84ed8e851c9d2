"""Runs one arm to its end and ranks what it gave: the part that can be interrupted anywhere.

    OUT/arms/TABLE/ARM/seed-0/   state.json, log.txt, ranks-test.parquet, metrics-test.json
    OUT/arms/TABLE/ARM/search-0/ one trial of a search, ranked on validation

An arm that is done under the same key (settings, scripts, versions, data) is not run again; one
that broke, or was interrupted, is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import EnvironmentFailed, build_environment
from benchmarks.peers.exchange import write_task
from benchmarks.peers.plan import FLOORS, HERE, OURS, Arm, Plan, Table, requirements_of
from benchmarks.peers.process import Interrupted, child_environment, run_process
from benchmarks.peers.tasks import make_task, read_scores
from data_prep.shards import PreparedData, Split
from mmrec.evaluation.baselines import Content
from mmrec.evaluation.evaluate import evaluate_scorers, metrics_document, write_evaluation
from mmrec.evaluation.protocol import (
    Cases,
    Which,
    load_cases,
    protocol_document,
    training_popularity,
)

ROOT = HERE.parent.parent
STATE = "state.json"


@dataclass
class Bench:
    """What all arms share, those that run at the same time as well.

    Attributes:
        plan: tables and arms.
        out: folder of everything that is written.
        data: the prepared folder.
        content: frozen vectors; None where no arm asked reads them.
        cache: where environments are kept.
        threads: of every arm.
        seeds: of the run; a search is made with the first.
        stop: set where the run is to end; an arm raises `Interrupted` then and stays undone.
    """

    plan: Plan
    out: Path
    data: PreparedData
    content: Content | None
    cache: Path
    threads: int
    seeds: tuple[int, ...]
    stop: threading.Event = field(default_factory=threading.Event)
    _cases: dict[tuple[str, Which], Cases] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self, arm: Arm) -> Table:
        """The table of an arm."""
        return next(table for table in self.plan.tables if table.name == arm.table)

    def split(self, arm: Arm) -> Split:
        """The split of an arm."""
        return self.data.split(self.table(arm).split)

    def cases_of(self, arm: Arm, which: Which) -> Cases:
        """The cases of an arm's split, read once."""
        place = (arm.table, which)
        with self._lock:
            if place not in self._cases:
                self._cases[place] = load_cases(self.data, self.split(arm), which)
            return self._cases[place]

    def task(self, arm: Arm, which: Which) -> Path:
        """The folder that a peer reads, written if it is not there."""
        named = "content" if arm.content else "ids"
        split_hash = self.split(arm).hash[:12]
        folder = self.out / "tasks" / f"{arm.table}-{which}-{named}-{split_hash}"
        with self._lock:
            if not folder.is_dir():
                aside = folder.with_suffix(".part")
                shutil.rmtree(aside, ignore_errors=True)
                content = self.content if arm.content else None
                write_task(make_task(self.data, self.split(arm), which, content), aside)
                os.replace(aside, folder)
        return folder


def arm_folder(out: Path, arm: Arm) -> Path:
    """Where an arm's seeds and trials lie."""
    return out / "arms" / arm.table / arm.slug


def read_state(folder: Path) -> dict[str, Any]:
    """What is known of a run of an arm; empty where it never began."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return state


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write it aside, then rename."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{STATE}.part"
    aside.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, folder / STATE)


def run_arm(bench: Bench, arm: Arm, seed: int) -> dict[str, Any]:
    """Run one seed of an arm, its search first where it has one; returns its state.

    Raises:
        Interrupted: the run is to end; what was begun is begun anew, or resumed, by the next.
    """
    settings = dict(arm.settings)
    if arm.search:
        trials = [
            _run_once(
                bench,
                arm,
                folder=arm_folder(bench.out, arm) / f"search-{number}",
                settings=settings | dict(trial),
                seed=bench.seeds[0],
                which="validation",
            )
            for number, trial in enumerate(arm.search)
        ]
        done = [trial for trial in trials if trial["status"] == "done"]
        if not done:
            return _broken(bench, arm, seed, settings, trials[0]["reason"])
        settings = max(done, key=lambda trial: trial["value"])["settings"]
    folder = arm_folder(bench.out, arm) / f"seed-{seed}"
    return _run_once(bench, arm, folder=folder, settings=settings, seed=seed, which="test")


def _run_once(
    bench: Bench, arm: Arm, *, folder: Path, settings: dict[str, Any], seed: int, which: Which
) -> dict[str, Any]:
    if bench.stop.is_set():
        raise Interrupted
    split = bench.split(arm)
    key = arm.key(chosen=settings, seed=seed, which=which, data=bench.data.data_hash, s=split.hash)
    state = read_state(folder)
    if state.get("key") == key and state["status"] == "done":
        return state
    if state.get("key") != key:
        shutil.rmtree(folder, ignore_errors=True)
    state = {"schema": 1, "key": key, "status": "running", "seed": seed, "settings": settings}
    write_state(folder, state)
    run = _run_ours if arm.peer == OURS else _run_peer
    try:
        state |= run(bench, arm, folder, settings, seed, which) | {"status": "done"}
    except (ArmFailed, EnvironmentFailed, ValueError) as error:
        state |= {"status": "broken", "reason": str(error)}
    write_state(folder, state)
    return state


def is_done(bench: Bench, arm: Arm, seed: int) -> bool:
    """Whether an arm's seed was run to its end under what its key depends on today."""
    state = read_state(arm_folder(bench.out, arm) / f"seed-{seed}")
    if state.get("status") != "done" or bench.table(arm).split not in bench.data.splits:
        return False
    facts = {"chosen": state["settings"], "seed": seed, "which": "test"}
    key = arm.key(**facts, data=bench.data.data_hash, s=bench.split(arm).hash)
    return bool(key == state["key"])


class ArmFailed(Exception):
    """An arm ended without a result; one line."""


def _broken(
    bench: Bench, arm: Arm, seed: int, settings: dict[str, Any], reason: str
) -> dict[str, Any]:
    state = {"schema": 1, "key": None, "status": "broken", "seed": seed, "settings": settings}
    write_state(arm_folder(bench.out, arm) / f"seed-{seed}", state | {"reason": reason})
    return state | {"reason": reason}


def _run_peer(
    bench: Bench, arm: Arm, folder: Path, settings: dict[str, Any], seed: int, which: Which
) -> dict[str, Any]:
    """Run a peer's script in its environment, then rank its scores with our metrics."""
    ours = arm.peer == FLOORS
    python = Path(sys.executable)
    if not ours:
        python = build_environment(
            requirements_of(arm.peer), bench.cache, threads=bench.threads, stop=bench.stop
        )
    limit_s = arm.limit_core_minutes * 60
    asked = settings | {"seed": seed, "threads": bench.threads, "limit_core_s": limit_s}
    (folder / "settings.json").write_text(json.dumps(asked), encoding="utf-8")
    script = HERE / f"peer_{arm.peer}.py"
    ended = run_process(
        [python, script, bench.task(arm, which), folder, folder / "settings.json"],
        log=folder / "log.txt",
        limit_s=3 * limit_s + 600,  # the budget ends training, this one a peer that hangs
        environment=child_environment(threads=bench.threads, ours=ours, root=ROOT),
        stop=bench.stop,
    )
    if ended.reason is not None:
        raise ArmFailed(ended.reason)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    figures = _rank(bench, arm, folder, seed, which)
    (folder / "scores.npy").unlink()  # 80 MB on MovieLens-1M; the ranks say all we need
    measured = {"seconds": ended.seconds, "cpu_s": ended.cpu_s, "peak_gb": ended.peak_gb}
    return {**measured, **result, **figures}


def _rank(bench: Bench, arm: Arm, folder: Path, seed: int, which: Which) -> dict[str, Any]:
    """Rank a peer's scores; the value that a search compares, for its validation."""
    cases, split = bench.cases_of(arm, which), bench.split(arm)
    evaluation = evaluate_scorers(
        {arm.name: read_scores(folder / "scores.npy", cases)},
        cases,
        popularity=training_popularity(split),
    )
    document = metrics_document(
        evaluation,
        split=split.name,
        protocol=protocol_document(
            split,
            which,
            repeats=bench.data.catalogue.repeats,
            available=cases.availability is not None,
        ),
        data_hash=bench.data.data_hash,
        checkpoint=None,
        seed=seed,
    )
    write_evaluation(
        folder,
        which,
        evaluation,
        document,
        user_ids=bench.data.user_ids,
        item_ids=bench.data.items.item_ids,
    )
    if which == "test":
        return {"ranks": "ranks-test.parquet", "model": arm.name}
    metrics = evaluation.models[arm.name]
    chosen = [(metrics[name] or {})["ndcg@10"] for name in bench.table(arm).select]
    return {"value": sum(chosen) / len(chosen)}


def _run_ours(
    bench: Bench, arm: Arm, folder: Path, settings: dict[str, Any], seed: int, which: Which
) -> dict[str, Any]:
    """`mmrec train` and `mmrec evaluate`, as anybody runs them; an unfinished run is resumed.

    The summary at the end of training and the baselines, which are arms of their own, are left out.
    """
    run = folder / "run"
    command = [sys.executable, "-m", "mmrec.cli"]
    train = [*command, "train", ROOT / settings["config"], "--data", bench.data.path, "--run", run]
    train += [*settings.get("overrides", ()), f"training.seed={seed}"]
    train += ["evaluation.baselines=[]", "--no-summary"]
    train += ["--resume"] * (run / "config.yaml").is_file()
    evaluate = [*command, "evaluate", run, "--data", bench.data.path]
    seconds, cpu_s, peak_gb = 0.0, 0.0, 0.0
    for number, part in enumerate((train, evaluate)):
        log = folder / f"log-{number}.txt"
        ended = run_process(
            part,
            log=log,
            limit_s=3 * arm.limit_core_minutes * 60,
            environment=child_environment(threads=bench.threads, ours=True, root=ROOT),
            stop=bench.stop,
        )
        if ended.reason is not None:
            raise ArmFailed(ended.reason)
        seconds, cpu_s = seconds + ended.seconds, cpu_s + ended.cpu_s
        peak_gb = max(peak_gb, ended.peak_gb)
    final = json.loads((run / "checkpoints" / "final" / "state.json").read_text(encoding="utf-8"))
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "fit_s": final["seconds"],
        "peak_gb": peak_gb,
        "versions": {"mmrec": _commit()},
        "notes": {"epochs": final["epochs_trained"]},
        "ranks": "run/ranks-test.parquet",
        "model": OURS,
    }


def _commit() -> str:
    """The commit of this checkout, or the version where there is none."""
    git = shutil.which("git")
    if git is not None:
        command = [git, "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode == 0:
            return said.stdout.strip()
    return version("mmrec")
