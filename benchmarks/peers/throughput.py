"""Target positions a second in training: mmrec beside RecTools' and RecBole's SASRec, in one run.

    python -m benchmarks.peers.throughput [--data DATA] [--threads 2] [--rounds 3] [--plain-glibc]

MovieLens-1M, leave-one-out, ids alone: the same width, depth, heads, length, loss over the whole
catalogue, batch size and threads for all. The sides take turns, each in a process of its own, so
that a slow minute of the machine meets them all; a figure is the median of its rounds. Writes
OUT/throughput.json and prints a table. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import build_environment, cache_root
from benchmarks.peers.exchange import write_task
from benchmarks.peers.plan import HERE, requirements_of
from benchmarks.peers.process import child_environment, run_process
from benchmarks.peers.tasks import make_task
from data_prep.prepare import prepare
from data_prep.shards import PreparedData

ROOT = HERE.parent.parent
CATALOGUE = ROOT / "configs" / "catalogues" / "movielens-1m.yaml"
SIZES = {"width": 128, "blocks": 2, "heads": 2, "length": 200, "batch_size": 128, "dropout": 0.3}
# what a side's loop does in half a minute or less on two cores; RecBole's batch has 128 targets
WARMUP = 3
BATCHES = {"rectools": 8, "recbole": 12, "mmrec": 24}
LIMIT_S = 1800


@dataclass(frozen=True)
class Side:
    """One loop that is timed.

    Attributes:
        name: in the table.
        peer: `mmrec`, or a script and its environment.
        changes: to configs/movielens-1m-id.yaml, for mmrec.
    """

    name: str
    peer: str
    changes: tuple[str, ...] = ()


# the configuration's own user model is larger
EQUAL = (
    f"model.history.num_blocks={SIZES['blocks']}",
    f"model.history.num_heads={SIZES['heads']}",
    f"model.history.dropout={SIZES['dropout']}",
)
LIKE_SASREC = (
    *EQUAL,
    "model.history.block=plain",
    "data.windows=last",
    "training.mask_seen=none",
)
SIDES = (
    Side("RecTools SASRec, softmax, fp32", "rectools"),
    Side("RecBole SASRec, CE, fp32", "recbole"),
    Side("mmrec, SASRec's block, fp32", "mmrec", (*LIKE_SASREC, "training.precision=fp32")),
    Side("mmrec, SASRec's block, bf16", "mmrec", (*LIKE_SASREC, "training.precision=bf16")),
    Side("mmrec, LiGR's block, met items masked, bf16", "mmrec", EQUAL),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 2 where the data are absent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "throughput")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--plain-glibc", action="store_true", help="glibc is not told to keep large buffers"
    )
    given = parser.parse_args(arguments)
    source, out = (given.data / "ml-1m").resolve(), given.out.resolve()
    if not source.is_dir():
        print(f"{source}: no data there; name the folder above it with --data", file=sys.stderr)
        return 2
    overrides = ("items.text=[title]", "items.image=[]")
    prepare(CATALOGUE, source, out / "prepared", overrides=overrides, num_workers=1)
    data = PreparedData.open(out / "prepared")
    if not (out / "task").is_dir():
        write_task(make_task(data, data.split(), "test", None), out / "task")
    pythons = {
        peer: build_environment(requirements_of(peer), cache_root(), threads=given.threads)
        for peer in ("rectools", "recbole")
    }
    rates: dict[str, list[float]] = {side.name: [] for side in SIDES}
    for turn in range(given.rounds):
        for number, side in enumerate(SIDES):
            environment = child_environment(
                threads=given.threads,
                ours=side.peer == "mmrec",
                root=ROOT,
                keep_buffers=not given.plain_glibc,
            )
            rate = measure(
                side,
                number,
                pythons,
                out,
                turn=turn,
                threads=given.threads,
                environment=environment,
            )
            rates[side.name].append(rate)
            print(f"round {turn + 1}: {side.name}: {rate:,.0f} targets/s", flush=True)
    document = {
        "schema": 1,
        "sizes": SIZES,
        "threads": given.threads,
        "keep_buffers": not given.plain_glibc,
        "targets_per_s": rates,
        "to_rectools": ratios(rates),
    }
    (out / "throughput.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(render(rates))
    return 0


def measure(
    side: Side,
    number: int,
    pythons: dict[str, Path],
    out: Path,
    *,
    turn: int,
    threads: int,
    environment: Mapping[str, str],
) -> float:
    """Targets a second of one side in one round.

    Raises:
        RuntimeError: its process failed.
    """
    folder = out / f"side-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    ours = side.peer == "mmrec"
    settings: dict[str, Any] = {
        **SIZES,
        "seed": turn,
        "threads": threads,
        "warmup": WARMUP,
        "batches": BATCHES[side.peer],
        "config": str(ROOT / "configs" / "movielens-1m-id.yaml"),
        "changes": ["data.split=null", *side.changes],
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    ended = run_process(
        [
            sys.executable if ours else pythons[side.peer],
            HERE / f"speed_{side.peer}.py",
            out / ("prepared" if ours else "task"),
            folder,
            folder / "settings.json",
        ],
        log=folder / "log.txt",
        limit_s=LIMIT_S,
        environment=environment,
    )
    if ended.reason is not None:
        raise RuntimeError(f"{side.name}: {ended.reason} (log: {folder / 'log.txt'})")
    figures = json.loads((folder / "speed.json").read_text(encoding="utf-8"))
    return float(figures["targets"] / figures["seconds"])


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Median over rounds of each side's rate as a multiple of RecTools' in the same round."""
    base = rates[SIDES[0].name]
    return {
        name: statistics.median(own / other for own, other in zip(each, base, strict=True))
        for name, each in rates.items()
    }


def render(rates: dict[str, list[float]]) -> str:
    """The table."""
    lines = ["| loop | target positions a second | times RecTools' |", "|---|---|---|"]
    for name, ratio in ratios(rates).items():
        lines.append(f"| {name} | {statistics.median(rates[name]):,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
