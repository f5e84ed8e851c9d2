"""What a catalogue with few events gains by a start from a model of another catalogue.

    python -m benchmarks.transfer.run [--users 300] [--seeds 0,1,2] [--shares 0.01,0.05,0.2]

    OUT/seed-K/films/ …        a made catalogue and the model of it; `strange` has other tastes
    OUT/seed-K/podcasts/       the catalogue that starts, with runs by share and start
    OUT/results.md .json       NDCG@10 on test, gains seed by seed, mean and deviation

Fresh and started runs of a seed know the same events and are asked the same questions. Each user
keeps two events, so that a share of 1 % is more than that: the table has the events known. All
interactions are simulated (`benchmarks.transfer.world`): tastes overlap by construction, and the
control, a start from a catalogue of which the media say nothing, shows what weights alone do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from benchmarks.runs import ROOT
from benchmarks.signals.run import ndcg_on_test
from benchmarks.transfer.world import write_world
from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import load_config
from mmrec.data.thinning import open_split
from mmrec.evaluation.protocol import training_popularity
from mmrec.evaluation.report_document import write_aside
from mmrec.training.train import train

CONFIG = Path(__file__).parent / "transfer.yaml"
NUM_ITEMS = 400
TARGET = "podcasts"
SOURCES = {"films": True, "strange": False}  # whether tastes overlap with the target's
FRESH = "fresh"
STARTS = (FRESH, *SOURCES)


@dataclass(frozen=True)
class Row:
    """NDCG@10 on test of one run on the target, and how many training events it knew."""

    share: float
    start: str
    seed: int
    events: int
    ndcg: float


@dataclass(frozen=True)
class Gain:
    """What a start gives above a fresh one.

    Attributes:
        ndcg: mean over seeds.
        mean: of the differences to the fresh run of the same seed; 0 of the fresh one.
        deviation: of these differences over seeds; 0 where there is one seed.
    """

    share: float
    start: str
    events: int
    ndcg: float
    mean: float
    deviation: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all shares and starts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=300, help="of the target")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--shares", default="0.01,0.05,0.2")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "transfer")
    given = parser.parse_args(arguments)
    shares = [float(share) for share in given.shares.split(",")]
    rows: list[Row] = []
    for seed in map(int, given.seeds.split(",")):
        rows += measure(given.out / f"seed-{seed}", shares, num_users=given.users, seed=seed)
        write_results(rows, given.out)
    print(render(rows))
    return 0


def measure(
    folder: Path, shares: Sequence[float], *, num_users: int, seed: int, changes: Sequence[str] = ()
) -> list[Row]:
    """Trains the sources, then the target by share and start; paired within the seed.

    Args:
        folder: emptied first.
        shares: of the target's events.
        num_users: of the target; sources have twice as many.
        seed: of the catalogues and the runs.
        changes: settings of every run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    changes = [*changes, f"training.seed={seed}"]
    for number, (name, overlaps) in enumerate(SOURCES.items()):
        data = make_data(folder / name, name, overlaps, 2 * num_users, seed=1000 * seed + number)
        train(load_config(CONFIG, changes), data, folder / name / "run")
        print(f"seed {seed}, {name}: {ndcg_on_test(folder / name / 'run'):.4f}", flush=True)
    data = make_data(folder / TARGET, TARGET, True, num_users, seed=1000 * seed + len(SOURCES))
    rows = []
    for share in shares:
        split = open_split(PreparedData.open(data), None, share)
        events = int(training_popularity(split).sum())
        for start in STARTS:
            run = folder / TARGET / f"{share:g}-{start}"
            own = [*changes, f"data.event_share={share}"]
            if start != FRESH:
                own.append(f"training.transfer_from={folder / start / 'run'}")
            train(load_config(CONFIG, own), data, run)
            rows.append(Row(share, start, seed, events, ndcg_on_test(run)))
            print(f"seed {seed}, {share:.0%}, {start}: {rows[-1].ndcg:.4f}", flush=True)
    return rows


def make_data(folder: Path, name: str, overlaps: bool, num_users: int, *, seed: int) -> Path:
    """A made catalogue, prepared."""
    catalogue = write_world(
        folder / "source",
        name,
        overlaps=overlaps,
        num_items=NUM_ITEMS,
        num_users=num_users,
        seed=seed,
    )
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def gains(rows: Sequence[Row]) -> list[Gain]:
    """Every share and start beside the fresh run of the same share and seed."""
    fresh = {(row.share, row.seed): row.ndcg for row in rows if row.start == FRESH}
    found = []
    for share, start in dict.fromkeys((row.share, row.start) for row in rows):
        own = [row for row in rows if (row.share, row.start) == (share, start)]
        differences = [row.ndcg - fresh[share, row.seed] for row in own]
        found.append(
            Gain(
                share,
                start,
                events=round(mean(row.events for row in own)),
                ndcg=mean(row.ndcg for row in own),
                mean=mean(differences),
                deviation=stdev(differences) if len(own) > 1 else 0.0,
            )
        )
    return found


def render(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    seeds = sorted({row.seed for row in rows})
    found = {(each.share, each.start): each for each in gains(rows)}
    lines = [
        f"Simulated: NDCG@10 on test, mean over seeds {', '.join(map(str, seeds))}; gain over a "
        "fresh start of the same seed ± its deviation over seeds",
        "",
        "| share of events | known | fresh | started | gain | of other tastes | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for share in dict.fromkeys(row.share for row in rows):
        fresh = found[share, FRESH]
        cells = [f"{share:.0%}", f"{fresh.events:,}", f"{fresh.ndcg:.4f}"]
        for start in SOURCES:
            each = found[share, start]
            cells += [f"{each.ndcg:.4f}", f"{each.mean:+.4f} ± {each.deviation:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_results(rows: Sequence[Row], out: Path) -> None:
    """Writes the table and its figures."""
    document = {"schema": 1, "simulated": True, "rows": [asdict(row) for row in rows]}
    write_aside(out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(out / "results.md", render(rows).encode())


if __name__ == "__main__":
    sys.exit(main())
