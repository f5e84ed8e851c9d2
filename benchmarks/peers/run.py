"""Compares mmrec with other libraries: one command from the raw data to a table.

    python -m benchmarks.peers.run [--quick] [--data DATA] [--only ARM,ARM] [--seeds 0,1] …

Prepares the splits, builds an environment for each peer, trains and scores every arm, ranks all
with mmrec's metrics, and writes OUT/results.md and results.json after each. Two arms run at a time
(--jobs), each with its share of the cores. It prints the budget first and can be interrupted: what
is done is not done again. Exit status 1 where an arm is broken,
2 where the data are absent or an option is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.peers.arms import Bench, arm_folder, is_done, run_arm
from benchmarks.peers.environments import cache_root
from benchmarks.peers.plan import HERE, Arm, Plan, PlanError, load_plan
from data_prep.errors import DataError
from mmrec.errors import MmrecError

ROOT = HERE.parent.parent
DATA = ROOT.parent / "shared" / "data"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        plan = load_plan(
            given.plan or HERE / ("quick.yaml" if given.quick else "movielens-1m.yaml")
        )
        arms = plan.choose(given.only)
    except (PlanError, FileNotFoundError) as error:
        return _refuse(str(error))
    seeds = given.seeds or plan.seeds
    source = (given.data / plan.source).resolve()
    if not source.is_dir():
        return _refuse(f"{source}: no data there; name the folder that holds it with --data")
    print(budget(plan, arms, seeds), flush=True)
    if given.dry_run:
        return 0
    try:
        bench = open_bench(plan, arms, given, seeds=seeds, source=source)
        return run_all(bench, arms, jobs=given.jobs)
    except (DataError, MmrecError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="MovieLens-100K, bounded epochs")
    parser.add_argument("--plan", type=Path, help="another plan than the two that ship")
    parser.add_argument("--data", type=Path, default=DATA, help="folder above the data sets")
    parser.add_argument("--out", type=Path, help="default: runs/peers/PLAN")
    parser.add_argument("--only", type=_names, default=(), help="arms, by commas")
    parser.add_argument(
        "--seeds", type=_numbers, default=(), help="e.g. 0,1,2; default: the plan's"
    )
    parser.add_argument("--jobs", type=_positive, default=2, help="arms at a time (2)")
    parser.add_argument(
        "--threads", type=_positive, help="of every arm; default: the cores, shared by the jobs"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the budget only")
    given = parser.parse_args(arguments)
    given.threads = given.threads or max(1, (os.cpu_count() or 1) // given.jobs)
    return given


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, where a whole number from 1 is wanted")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _names(text))


def budget(plan: Plan, arms: Sequence[Arm], seeds: Sequence[int]) -> str:
    """What the run will take on two cores: arms x seeds x hours, by the plan's estimates."""
    lines, total = [f"{plan.title}: budget on two cores, what is done already included"], 0.0
    for arm in arms:
        number = len(arm.seeds(seeds))
        total += number * arm.minutes
        lines.append(
            f"  {arm.table:5} {arm.slug:34} {number} x {arm.minutes / 60:.3f} h"
            f" = {number * arm.minutes / 60:.3f} h"
        )
    runs = sum(len(arm.seeds(seeds)) for arm in arms)
    return "\n".join([*lines, f"  {runs} runs, {total / 60:.1f} h and the environments' downloads"])


def open_bench(
    plan: Plan,
    arms: Sequence[Arm],
    given: argparse.Namespace,
    *,
    seeds: tuple[int, ...],
    source: Path,
) -> Bench:
    """Prepare the splits that the arms need, and the frozen vectors where one reads them."""
    from benchmarks.peers.tasks import frozen_content
    from data_prep.prepare import prepare
    from data_prep.shards import PreparedData
    from mmrec.weights import folder_of, install

    out = (given.out or ROOT / "runs" / "peers" / plan.name).resolve()
    out.mkdir(parents=True, exist_ok=True)
    prepared = out / "prepared"
    for table in plan.tables:
        if any(arm.table == table.name for arm in arms):
            done = prepare(
                ROOT / plan.catalogue,
                source,
                prepared,
                overrides=table.prepare,
                num_workers=given.jobs * given.threads,
            )
            print(f"{table.name}: {done.line()}", flush=True)
    data, content = PreparedData.open(prepared), None
    if any(arm.content for arm in arms):
        for name in plan.weights:
            if folder_of(name) is None:
                install(name)
        content = frozen_content(data, plan.encoders)
    return Bench(plan, out, data, content, cache_root(), given.threads, tuple(seeds))


def run_all(bench: Bench, arms: Sequence[Arm], *, jobs: int) -> int:
    """Every arm and seed, so many at a time; the results are written anew after each.

    They have the arms of earlier runs as well, so that a plan of days can be run in parts. The
    longest begin first, or the last of them would keep one job busy while the others wait. The
    seeds of an arm that searches run in turn, since they share its trials.
    """
    from benchmarks.peers.table import write_results

    shown = [
        arm
        for arm in bench.plan.arms
        if arm in arms or any(is_done(bench, arm, seed) for seed in arm.seeds(bench.seeds))
    ]
    todo: list[tuple[Arm, tuple[int, ...]]] = []
    for arm in sorted(arms, key=lambda arm: -arm.minutes) if jobs > 1 else arms:
        seeds = arm.seeds(bench.seeds)
        todo += [(arm, seeds)] if arm.search else [(arm, (seed,)) for seed in seeds]
    broken = []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_run_seeds, bench, arm, seeds) for arm, seeds in todo]
        try:
            for ended in as_completed(waiting):
                broken += ended.result()
                write_results(
                    bench.plan,
                    shown,
                    bench.out,
                    seeds=bench.seeds,
                    machine=machine(jobs, bench.threads),
                )
        except BaseException:
            bench.stop.set()
            raise
    print((bench.out / "results.md").read_text(encoding="utf-8"))
    print(f"{bench.out / 'results.md'}; broken: {', '.join(dict.fromkeys(broken)) or 'none'}")
    return 1 if broken else 0


def _run_seeds(bench: Bench, arm: Arm, seeds: Sequence[int]) -> list[str]:
    """Run seeds of an arm in turn and say how each ends; the arm's name for each that broke."""
    broken = []
    for seed in seeds:
        name = f"{arm.table} {arm.slug} seed {seed}"
        print(f"{name} …", flush=True)
        state = run_arm(bench, arm, seed)
        said = f"{state['status']}, {state.get('seconds', 0):.0f} s"
        if state["status"] == "broken":
            broken.append(f"{arm.table} {arm.slug}")
            said = f"broken: {state['reason']} (log: {arm_folder(bench.out, arm)})"
        print(f"{name}: {said}", flush=True)
    return broken


def machine(jobs: int, threads: int) -> dict[str, Any]:
    """What the seconds depend on."""
    from importlib.metadata import version

    return {"cores": os.cpu_count(), "jobs": jobs, "threads": threads, "torch": version("torch")}


def _refuse(reason: str) -> int:
    print(" ".join(reason.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
