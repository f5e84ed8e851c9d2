"""What varied lists cost: NDCG against the diversity within lists, by `training.variety_weight`.

    python -m benchmarks.variety.run [--users 1000] [--seeds 0,1,2] [--weights 0,2,5,10,20,40]

    OUT/seed-K/data/            a made catalogue, prepared
    OUT/seed-K/weight-W/        a run and row.json; one that is finished is not made again
    OUT/results.md .json        NDCG@10 and diversity@10 on validation, mean over seeds

The catalogue is simulated (`benchmarks.transfer.world`): each user wishes for two kinds of items.
Diversity is 1 - mean cosine between the items of a list, by their look and sound as they came: no
model was trained on that likeness.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.runs import ROOT, is_begun
from benchmarks.transfer.world import write_world
from data_prep.prepare import prepare
from mmrec.config import load_config
from mmrec.evaluation.command import item_traits
from mmrec.evaluation.initial import initial_content
from mmrec.evaluation.lists import LIST_LENGTH, intra_list_diversity
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.protocol import load_cases
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.evaluation.report_document import write_aside
from mmrec.loaded import load_run, open_source
from mmrec.training.train import train
from mmrec.training.validate import case_vectors

CONFIG = Path(__file__).parent / "variety.yaml"
NUM_ITEMS = 400


@dataclass(frozen=True)
class Row:
    """What one run shows on validation.

    Attributes:
        weight: `training.variety_weight`.
        seed: of the catalogue and the run.
        ndcg: NDCG@10.
        diversity: 1 - mean cosine between the ten items of a list.
    """

    weight: float
    seed: int
    ndcg: float
    diversity: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all weights; exit status 1 where more weight does not trade one for the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--weights", default="0,2,5,10,20,40")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "variety")
    given = parser.parse_args(arguments)
    weights = [float(weight) for weight in given.weights.split(",")]
    rows: list[Row] = []
    for seed in map(int, given.seeds.split(",")):
        rows += measure(given.out / f"seed-{seed}", weights, num_users=given.users, seed=seed)
        write_results(rows, given.out, given.users)
    print(render(rows, given.users))
    return int(not is_monotone(rows))


def measure(
    folder: Path,
    weights: Sequence[float],
    *,
    num_users: int,
    seed: int,
    changes: Sequence[str] = (),
) -> list[Row]:
    """Trains and looks at validation once for each weight, on one made catalogue.

    Args:
        folder: of the seed; what is finished there is taken as it is.
        weights: of variety.
        num_users: U.
        seed: of the catalogue and the runs.
        changes: settings of every run.
    """
    origin = [CONFIG.read_text(encoding="utf-8"), NUM_ITEMS, num_users, seed, *changes]
    data = folder / "data"
    if not is_begun(folder, origin) or not (data / "manifest.json").is_file():
        write_data(folder, num_users=num_users, seed=seed)
    rows = []
    for weight in weights:
        run = folder / f"weight-{weight:g}"
        kept = run / "row.json"
        if not kept.is_file():
            own = [*changes, f"training.seed={seed}", f"training.variety_weight={weight}"]
            train(load_config(CONFIG, own), data, run, resume=run.is_dir())
            row = Row(weight, seed, *look(run))
            write_aside(kept, json.dumps(asdict(row)).encode())
        rows.append(Row(**json.loads(kept.read_text(encoding="utf-8"))))
        found = rows[-1]
        print(f"seed {seed}, weight {weight:g}: {found.ndcg:.4f} {found.diversity:.4f}", flush=True)
    return rows


def write_data(folder: Path, *, num_users: int, seed: int) -> None:
    """A made catalogue, prepared."""
    source = folder / "source"
    catalogue = write_world(
        source, "films", overlaps=True, num_items=NUM_ITEMS, num_users=num_users, seed=seed
    )
    prepare(catalogue, source, folder / "data", num_workers=1)


def look(run: Path) -> tuple[float, float]:
    """NDCG@10 of a finished run on validation, and the diversity of its lists."""
    loaded = load_run(run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "validation")
    traits = item_traits(loaded, initial_content(loaded, open_source(loaded)))
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    ranking = rank_cases(VectorScorer(users, items), cases, top_k=LIST_LENGTH)
    found = case_metrics(ranking.rank, cases.targets.offsets, ks=(LIST_LENGTH,))
    diversity = intra_list_diversity(ranking.top_items, traits.vectors)
    return float(found[f"ndcg@{LIST_LENGTH}"].mean()), float(np.nanmean(diversity))


def curve(rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """(weight, NDCG, diversity), means over seeds, weights ascending."""
    found = []
    for weight in sorted({row.weight for row in rows}):
        own = [row for row in rows if row.weight == weight]
        found.append((weight, mean(row.ndcg for row in own), mean(row.diversity for row in own)))
    return found


def is_monotone(rows: Sequence[Row]) -> bool:
    """Whether every step up in weight gives diversity and costs NDCG."""
    return all(
        after[1] <= before[1] and after[2] >= before[2] for before, after in pairwise(curve(rows))
    )


def render(rows: Sequence[Row], num_users: int) -> str:
    """The table in Markdown."""
    seeds = sorted({row.seed for row in rows})
    lines = [
        f"Simulated: {num_users:,} users; validation, mean over seeds {', '.join(map(str, seeds))}",
        "",
        "| `training.variety_weight` | NDCG@10 | diversity@10 |",
        "|---|---|---|",
    ]
    lines += [f"| {weight:g} | {ndcg:.4f} | {varied:.4f} |" for weight, ndcg, varied in curve(rows)]
    return "\n".join(lines) + "\n"


def write_results(rows: Sequence[Row], out: Path, num_users: int) -> None:
    """Writes the table and its figures."""
    document = {
        "schema": 1,
        "simulated": True,
        "users": num_users,
        "rows": [asdict(row) for row in rows],
    }
    write_aside(out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(out / "results.md", render(rows, num_users).encode())


if __name__ == "__main__":
    sys.exit(main())
