"""What each part of the model earns: the model without it, part by part, warm and cold.

    python -m benchmarks.ablation.run [--plan PLAN] [--data DATA] [--jobs N] [--seeds 0,1] …

    OUT/source/                 where the plan simulates users: a copy of the data with their log
    OUT/prepared/               the data
    OUT/runs/PART/seed-0/       a run, its ranks of the validation targets, its log
    OUT/results.md .json        the table, written anew every few minutes and at the end

Every run is `mmrec train` with settings changed. A command that was interrupted goes on where it
was; a run whose settings or data have changed is made again. Test targets are never read.

A plan with a grid also has every subset of the modalities under every fusion, and the table ends
with a test of whether fusion improves on the best modality alone. With `left_out: true` it also
says what it costs to lose a modality that the model was trained with.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.ablation.left_out import LEFT_OUT, ask_without
from benchmarks.ablation.plan import COMPLETE, DEFAULT_PLAN, ROOT, Part, Plan, load_plan
from benchmarks.ablation.table import item_groups, run_folder, write_results
from benchmarks.runs import install_weights, is_begun, run_commands, train_command
from benchmarks.simulated.source import write_source
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import load_config

HOURS_A_RUN = 6.0
TABLE_EVERY_S = 300.0  # a grid's takes seconds to make, with intervals for all of its cells


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where a run is broken, 2 where the data are absent."""
    given = parse(arguments)
    plan = load_plan(given.plan)
    source = (given.data / plan.source).resolve()
    if not source.is_dir():
        print(f"{source}: no data there; name the folder above it with --data", file=sys.stderr)
        return 2
    seeds = given.seeds or plan.seeds
    parts = [p for p in plan.parts if not given.only or p.slug in (*given.only, COMPLETE)]
    prepared = given.out / "prepared"
    if plan.users is not None:
        source = write_source(source, given.out / "source", **plan.users)
    print(
        prepare(ROOT / plan.catalogue, source, prepared, overrides=list(plan.prepare)).line(),
        flush=True,
    )
    for name in plan.weights:
        install_weights(name)
    data = PreparedData.open(prepared)
    groups = item_groups(data, load_config(ROOT / plan.config).data.split)
    broken, written_s = [], time.monotonic()
    # a seed's first run alone fills the state caches, which the others then share: an encoder
    # without pretrained weights has those of the seed
    batches = [[(part, seed) for part in some] for seed in seeds for some in (parts[:1], parts[1:])]
    with ThreadPoolExecutor(given.jobs) as pool:
        for batch in batches:
            waiting = {
                pool.submit(run_one, plan, part, seed, given, prepared, data.data_hash): (
                    part,
                    seed,
                )
                for part, seed in batch
            }
            for ended in as_completed(waiting):
                part, seed = waiting[ended]
                reason = ended.result()
                print(f"{part.slug} seed {seed}: {reason or 'done'}", flush=True)
                if reason is not None:
                    broken.append(f"{part.slug} seed {seed}")
                if time.monotonic() - written_s > TABLE_EVERY_S:
                    write_results(plan, parts, seeds, given.out, groups)
                    written_s = time.monotonic()
    write_results(plan, parts, seeds, given.out, groups)
    print((given.out / "results.md").read_text(encoding="utf-8"))
    print(f"{given.out / 'results.md'}; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", type=Path, default=DEFAULT_PLAN)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, help="runs/ablation, or runs/ablation-PLAN for another")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="parts")
    parser.add_argument(
        "--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[]
    )
    given = parser.parse_args(arguments)
    name = "ablation" if given.plan.resolve() == DEFAULT_PLAN else f"ablation-{given.plan.stem}"
    given.out = (given.out or ROOT / "runs" / name).resolve()
    return given


def run_one(
    plan: Plan, part: Part, seed: int, given: argparse.Namespace, prepared: Path, data_hash: str
) -> str | None:
    """Trains and ranks one run unless that is done; None, or why it is broken."""
    folder = run_folder(given.out, part, seed)
    settings = plan.settings_of(part, seed)
    config = ROOT / plan.config
    run = folder / "run"
    asks = plan.left_out and part.name == COMPLETE
    wanted = [run / "ranks-validation.parquet", *([folder / LEFT_OUT] if asks else [])]
    begun = is_begun(folder, [config.read_text(encoding="utf-8"), settings, data_hash])
    if begun and all(file.is_file() for file in wanted):
        return None
    commands = {
        "train": train_command(config, settings, prepared, run),
        "evaluate": ["evaluate", str(run), "--split", "validation"],
    }
    broken = run_commands(folder, commands, limit_s=3600 * HOURS_A_RUN, threads=given.threads)
    if broken is None and asks:
        broken = ask_without(folder, limit_s=3600 * HOURS_A_RUN, threads=given.threads)
    if broken is None:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)  # the ranks say all we need
    return broken


if __name__ == "__main__":
    sys.exit(main())
