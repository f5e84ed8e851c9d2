"""What more trained blocks give and what they cost: one table, one plot.

    python -m benchmarks.cut.run [--plan PLAN] [--data DATA] [--seeds 0,1] [--only ARM,ARM]

    OUT/prepared/             the data
    OUT/runs/ARM/seed-0/      a run and its log; `start` is the cut-0 run that all others go on from
    OUT/results.md .json      trainable parameters, seconds an epoch, peak memory, HR@10 and NDCG@10
    OUT/quality.png           NDCG@10 against seconds, warm and new items

Runs follow one another, so that none is timed beside another. A command that was interrupted goes
on where it was. Validation targets only: the arms are settings to choose from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from benchmarks.cut.plot import draw
from benchmarks.runs import ROOT, install_weights, is_begun, run_commands, train_command
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.evaluation.report_document import write_aside

HERE = Path(__file__).resolve().parent
START = "start"
HOURS_A_RUN = 12.0
SLICES = ("warm", "cold_among_cold")
TRAINED_FROM_MEDIA = ("text", "image")


@dataclass(frozen=True)
class Arm:
    """What trains of the encoders.

    name: in the table.
    blocks: trainable_blocks of text and image.
    method: how.
    """

    name: str
    blocks: int | str
    method: str = "full"

    @property
    def slug(self) -> str:
        """A folder name."""
        return self.name.replace(" ", "-")

    @property
    def settings(self) -> dict[str, Any]:
        """What `mmrec train` is told to change."""
        return {
            f"encoders.{name}.{key}": value
            for name in TRAINED_FROM_MEDIA
            for key, value in (("trainable_blocks", self.blocks), ("method", self.method))
        }


@dataclass(frozen=True)
class Row:
    """One run of an arm.

    seconds_an_epoch: of training steps, their batches read; looks at validation left out.
    epochs: each validation's figures, slice and metric.
    """

    arm: str
    seed: int
    trainable: int
    frozen: int
    seconds_an_epoch: float
    peak_gb: float
    epochs: tuple[Mapping[str, Mapping[str, float]], ...]

    @property
    def last(self) -> Mapping[str, Mapping[str, float]]:
        """Figures after the last epoch."""
        return self.epochs[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 1 where a run is broken, 2 where the data are absent."""
    given = parse(arguments)
    plan = yaml.safe_load(given.plan.read_text(encoding="utf-8"))
    source = (given.data / plan["source"]).resolve()
    if not source.is_dir():
        print(f"{source}: no data there; name the folder above it with --data", file=sys.stderr)
        return 2
    arms = [Arm(**each) for each in plan["arms"]]
    arms = [arm for arm in arms if not given.only or arm.slug in given.only]
    prepared = given.out / "prepared"
    told = prepare(ROOT / plan["catalogue"], source, prepared, overrides=plan["prepare"])
    print(told.line(), flush=True)
    for name in plan["weights"]:
        install_weights(name)
    data = PreparedData.open(prepared)
    rows, broken = [], []
    for seed in given.seeds or plan["seeds"]:
        start = given.out / "runs" / START / f"seed-{seed}"
        settings = plan["settings"] | plan["start"] | {"training.seed": seed}
        reason = train_one(start, plan, settings, data, threads=given.threads)
        if reason is not None:
            broken.append(f"{START}, seed {seed}: {reason}")
            continue
        for arm in arms:
            folder = given.out / "runs" / arm.slug / f"seed-{seed}"
            settings = plan["settings"] | plan["arms_settings"] | arm.settings
            settings |= {"training.seed": seed, "training.start_from": str(start / "run")}
            reason = train_one(folder, plan, settings, data, threads=given.threads)
            print(f"{arm.name}, seed {seed}: {reason or 'done'}", flush=True)
            if reason is not None:
                broken.append(f"{arm.name}, seed {seed}: {reason}")
                continue
            rows.append(read_row(folder / "run", arm, seed))
            write_results(rows, given.out, threads=given.threads)
    if rows:
        print((given.out / "results.md").read_text(encoding="utf-8"))
    print(f"{given.out / 'results.md'}; broken: {'; '.join(broken) or 'none'}")
    return 1 if broken else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", type=Path, default=HERE / "movielens-1m.yaml")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "cut")
    parser.add_argument("--threads", type=int, default=2, help="of each run")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="arms")
    parser.add_argument(
        "--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[]
    )
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    return given


def train_one(
    folder: Path,
    plan: Mapping[str, Any],
    settings: Mapping[str, Any],
    data: PreparedData,
    *,
    threads: int,
) -> str | None:
    """Trains one run unless that is done; None, or why it is broken."""
    config, run = ROOT / plan["config"], folder / "run"
    origin = [config.read_text(encoding="utf-8"), settings, data.data_hash]
    if is_begun(folder, origin) and (run / "checkpoints" / "final" / "state.json").is_file():
        return None
    commands = {"train": train_command(config, settings, data.path, run)}
    return run_commands(folder, commands, limit_s=3600 * HOURS_A_RUN, threads=threads)


def read_row(run: Path, arm: Arm, seed: int) -> Row:
    """What a finished run says of itself."""
    state = json.loads((run / "checkpoints" / "final" / "state.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    looks = [each["validation"] for each in map(json.loads, lines) if "validation" in each]
    encoders = [
        counts for name, counts in state["parameters"].items() if name.startswith("encoders.")
    ]
    return Row(
        arm=arm.name,
        seed=seed,
        trainable=sum(each["trainable"] for each in encoders),
        frozen=sum(each["frozen"] for each in encoders),
        seconds_an_epoch=state["seconds"] / state["epochs_trained"],
        peak_gb=state["peak_memory_bytes"] / 1e9,
        epochs=tuple({name: look[name] for name in SLICES} for look in looks),
    )


def write_results(rows: Sequence[Row], out: Path, *, threads: int) -> None:
    """The table as Markdown and JSON, and the plot, of what there is so far."""
    document = {"schema": 1, "threads": threads, "rows": [vars(row) for row in rows]}
    write_aside(out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(out / "results.md", render(rows, threads=threads).encode())
    draw(curves_of(rows), out / "quality.png")


def curves_of(rows: Sequence[Row]) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """NDCG@10 of each arm against seconds of training, both as means over seeds."""
    curves: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for arm in dict.fromkeys(row.arm for row in rows):
        runs = [row for row in rows if row.arm == arm]
        seconds = mean(run.seconds_an_epoch for run in runs)
        curves[arm] = [
            (
                seconds * (epoch + 1),
                {name: mean(run.epochs[epoch][name]["ndcg@10"] for run in runs) for name in SLICES},
            )
            for epoch in range(min(len(run.epochs) for run in runs))
        ]
    return curves


def render(rows: Sequence[Row], *, threads: int) -> str:
    """The table: means over seeds; figures after the last epoch."""
    by_arm: dict[str, list[Row]] = {}
    for row in rows:
        by_arm.setdefault(row.arm, []).append(row)
    lines = [
        f"Validation, after the last epoch; {threads} threads; seeds "
        + ", ".join(str(seed) for seed in sorted({row.seed for row in rows})),
        "",
        "| trained | parameters of encoders | s an epoch | peak GB | warm HR@10 | warm NDCG@10 "
        "| new among new HR@10 | NDCG@10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, runs in by_arm.items():
        total = runs[0].trainable + runs[0].frozen
        share = f"{runs[0].trainable:,} ({runs[0].trainable / max(total, 1):.1%})"
        figures = [
            f"{mean(run.last[name][metric] for run in runs):.4f}".removeprefix("0")
            for name in SLICES
            for metric in ("hr@10", "ndcg@10")
        ]
        costs = [
            f"{mean(run.seconds_an_epoch for run in runs):.1f}",
            f"{max(run.peak_gb for run in runs):.2f}",
        ]
        lines.append("| " + " | ".join([arm, share, *costs, *figures]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
