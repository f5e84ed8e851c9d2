"""What each part of the model earns: the model without it, part by part, warm and cold.

    python -m benchmarks.ablation.run [--data DATA] [--out OUT] [--jobs N] [--seeds 0,1] …

    OUT/prepared/               the data
    OUT/runs/PART/seed-0/       a run, its ranks of the validation targets, its log
    OUT/results.md .json        the table, written anew after each run

Every run is `mmrec train` with settings changed. A command that was interrupted goes on where it
was; a run whose settings or data have changed is made again. Test targets are never read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from benchmarks.peers.process import child_environment, run_process
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.evaluation.evaluate import user_values
from mmrec.evaluation.metrics import FloatArray, bootstrap_interval

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMPLETE = "complete"
FIGURES = (
    ("warm", "ndcg@10", "warm NDCG@10"),
    ("cold_among_cold", "ndcg@10", "cold among cold NDCG@10"),
    ("cold", "hr@10", "cold among all HR@10"),
)
HOURS_A_RUN = 6.0


@dataclass(frozen=True)
class Part:
    """A part of the model and the settings that take it away."""

    name: str
    settings: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """A folder name."""
        letters = "".join(c if c.isalnum() else "-" for c in self.name.lower())
        return "-".join(word for word in letters.split("-") if word)


@dataclass(frozen=True)
class Plan:
    """Data, the complete model, and what is taken away from it; see the YAML beside this file."""

    catalogue: str
    source: str
    prepare: tuple[str, ...]
    weights: tuple[str, ...]
    config: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    parts: tuple[Part, ...]

    def settings_of(self, part: Part, seed: int) -> dict[str, Any]:
        """What `mmrec train` is told to change."""
        return {**self.settings, **part.settings, "training.seed": seed}


def load_plan(path: Path) -> Plan:
    """Reads a plan; the complete model comes first."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = (Part(COMPLETE, {}), *(Part(**each) for each in document.pop("parts")))
    for name in ("prepare", "weights", "seeds"):
        document[name] = tuple(document[name])
    return Plan(**document, parts=parts)


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
    print(
        prepare(ROOT / plan.catalogue, source, prepared, overrides=list(plan.prepare)).line(),
        flush=True,
    )
    for name in plan.weights:
        _install(name)
    data_hash = PreparedData.open(prepared).data_hash
    broken = []
    # the first run alone fills the state cache, which the others then share
    todo = [(part, seed) for seed in seeds for part in parts]
    first, rest = todo[0], todo[1:]
    with ThreadPoolExecutor(given.jobs) as pool:
        for batch in ([first], rest):
            waiting = {
                pool.submit(run_one, plan, part, seed, given, prepared, data_hash): (part, seed)
                for part, seed in batch
            }
            for ended in as_completed(waiting):
                part, seed = waiting[ended]
                reason = ended.result()
                print(f"{part.slug} seed {seed}: {reason or 'done'}", flush=True)
                if reason is not None:
                    broken.append(f"{part.slug} seed {seed}")
                write_results(plan, parts, seeds, given.out)
    print((given.out / "results.md").read_text(encoding="utf-8"))
    print(f"{given.out / 'results.md'}; broken: {', '.join(broken) or 'none'}")
    return 1 if broken else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", type=Path, default=HERE / "movielens-1m.yaml")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="parts")
    parser.add_argument(
        "--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[]
    )
    given = parser.parse_args(arguments)
    given.out = given.out.resolve()
    return given


def _install(name: str) -> None:
    from mmrec.weights import folder_of, install

    if folder_of(name) is None:
        install(name)


def run_folder(out: Path, part: Part, seed: int) -> Path:
    """Where a run lies."""
    return out / "runs" / part.slug / f"seed-{seed}"


def run_one(
    plan: Plan, part: Part, seed: int, given: argparse.Namespace, prepared: Path, data_hash: str
) -> str | None:
    """Trains and ranks one run unless that is done; None, or why it is broken."""
    folder = run_folder(given.out, part, seed)
    settings = plan.settings_of(part, seed)
    config = ROOT / plan.config
    key = hashlib.sha256(
        json.dumps([config.read_text(encoding="utf-8"), settings, data_hash]).encode()
    ).hexdigest()[:16]
    kept = folder / "key.txt"
    if kept.is_file() and kept.read_text(encoding="utf-8") == key:
        if (folder / "run" / "ranks-validation.parquet").is_file():
            return None
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        kept.write_text(key, encoding="utf-8")
    changes = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    run = folder / "run"
    commands = {
        "train": ["train", str(config), *changes, "--data", str(prepared), "--run", str(run)],
        "evaluate": ["evaluate", str(run), "--split", "validation"],
    }
    commands["train"] += ["--resume"] if run.is_dir() else []
    for name, command in commands.items():
        ended = run_process(
            [sys.executable, "-m", "mmrec.cli", *command],
            log=folder / f"{name}.log",
            limit_s=3600 * HOURS_A_RUN,
            environment=child_environment(threads=given.threads, ours=True, root=ROOT),
        )
        if ended.reason is not None:
            return f"{name} broken: {ended.reason} (log: {folder})"
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # the ranks say all we need
    return None


def write_results(plan: Plan, parts: Sequence[Part], seeds: Sequence[int], out: Path) -> None:
    """The table of what there is so far, as Markdown and JSON."""
    rows = [row for part in parts if (row := row_of(part, seeds, out)) is not None]
    document = {"schema": 1, "config": plan.config, "settings": dict(plan.settings), "rows": rows}
    _write(out / "results.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    _write(out / "results.md", render(rows))


def row_of(part: Part, seeds: Sequence[int], out: Path) -> dict[str, Any] | None:
    """One part's figures, and how they differ from the complete model's with the same seeds."""
    whole = Part(COMPLETE, {})
    done = [
        seed
        for seed in seeds
        if all(_ranks_file(out, each, seed).is_file() for each in (part, whole))
    ]
    if not done:
        return None
    row: dict[str, Any] = {"name": part.name, "seeds": done, "figures": {}}
    for slice_name, metric, _ in FIGURES:
        own = values_of(out, part, done, slice_name, metric)
        less = own - values_of(out, whole, done, slice_name, metric)
        low, high = bootstrap_interval(less.mean(0))
        row["figures"][f"{slice_name} {metric}"] = {
            "mean": float(own.mean()),
            "deviation": float(own.mean(1).std(ddof=1)) if len(done) > 1 else None,
            "difference": float(less.mean()),
            "low": low,
            "high": high,
            "by_seed": less.mean(1).tolist(),
        }
    return row


def _ranks_file(out: Path, part: Part, seed: int) -> Path:
    return run_folder(out, part, seed) / "run" / "ranks-validation.parquet"


def values_of(
    out: Path, part: Part, seeds: Sequence[int], slice_name: str, metric: str
) -> FloatArray:
    """(seeds, users) values of our model."""
    tables = [
        user_values(
            pl.read_parquet(_ranks_file(out, part, seed)),
            model="mmrec",
            slice_name=slice_name,
            metric=metric,
        )
        for seed in seeds
    ]
    return np.stack([table["value"].to_numpy() for table in tables])


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table: each part's absence, and in brackets the 95 % interval of what it changes."""
    lines = [
        "| without | seeds | " + " | ".join(title for _, _, title in FIGURES) + " |",
        "|---|---|" + "---|" * len(FIGURES),
    ]
    for row in rows:
        cells = []
        for slice_name, metric, _ in FIGURES:
            figure = row["figures"][f"{slice_name} {metric}"]
            cell = _number(figure["mean"])
            if row["name"] == COMPLETE:
                if figure["deviation"] is not None:
                    cell += f" ± {_number(figure['deviation'])}"
            else:
                cell += (
                    f" ({_signed(figure['difference'])}: {_signed(figure['low'])} to "
                    f"{_signed(figure['high'])})"
                )
            cells.append(cell)
        name = "*nothing: the complete model*" if row["name"] == COMPLETE else row["name"]
        lines.append(f"| {name} | {len(row['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(f"{path.suffix}.part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


if __name__ == "__main__":
    sys.exit(main())
