"""Compares mmrec with other libraries: one command from the raw data to a table.

    python -m benchmarks.peers.run [--quick] [--data DATA] [--only ARM,ARM] [--seeds 0,1] …

Prepares the splits, builds an environment for each peer, trains and scores every arm, ranks all
with mmrec's metrics, and writes OUT/results.md and results.json after each. It prints the budget
first and can be interrupted: what is done is not done again. Exit status 1 where an arm is broken,
2 where the data are absent or an option is wrong.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
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
        return run_all(bench, arms)
    except (DataError, MmrecError) as error:
        return _refuse(str(error))


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
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every arm")
    parser.add_argument("--dry-run", action="store_true", help="print the budget only")
    return parser.parse_args(arguments)


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
                num_workers=given.threads,
            )
            print(f"{table.name}: {done.line()}", flush=True)
    data, content = PreparedData.open(prepared), None
    if any(arm.content for arm in arms):
        for name in plan.weights:
            if folder_of(name) is None:
                install(name)
        content = frozen_content(data, plan.encoders)
    return Bench(plan, out, data, content, cache_root(), given.threads, tuple(seeds))


def run_all(bench: Bench, arms: Sequence[Arm]) -> int:
    """Every arm and seed in turn; the results are written anew after each.

    They have the arms of earlier runs as well, so that a plan of days can be run in parts.
    """
    from benchmarks.peers.table import write_results

    broken = []
    shown = [
        arm
        for arm in bench.plan.arms
        if arm in arms or any(is_done(bench, arm, seed) for seed in arm.seeds(bench.seeds))
    ]
    for arm in arms:
        for seed in arm.seeds(bench.seeds):
            print(f"{arm.table} {arm.slug} seed {seed} …", flush=True)
            state = run_arm(bench, arm, seed)
            said = f"{state['status']}, {state.get('seconds', 0):.0f} s"
            if state["status"] == "broken":
                broken.append(f"{arm.table} {arm.slug}")
                said = f"broken: {state['reason']} (log: {arm_folder(bench.out, arm)})"
            print(f"  {said}", flush=True)
            write_results(
                bench.plan, shown, bench.out, seeds=bench.seeds, machine=machine(bench.threads)
            )
    print((bench.out / "results.md").read_text(encoding="utf-8"))
    print(f"{bench.out / 'results.md'}; broken: {', '.join(dict.fromkeys(broken)) or 'none'}")
    return 1 if broken else 0


def machine(threads: int) -> dict[str, Any]:
    """What the seconds depend on."""
    from importlib.metadata import version

    return {"cores": os.cpu_count(), "threads": threads, "torch": version("torch")}


def _refuse(reason: str) -> int:
    print(" ".join(reason.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
