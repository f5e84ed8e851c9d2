"""What each signal beside the items earns, where it says what is wanted next and where it does not.

    python -m benchmarks.signals.run [--users 5000] [--seeds 0,1,2] [--only events,times]

    OUT/SIGNAL-carries/seed-0/    a made log and the runs with and without the signal
    OUT/results.md .json          NDCG@10 on test, mean and deviation over seeds

All interactions are simulated (`benchmarks.signals.world`): the table says that a signal which
carries taste is read, and that one which carries none does no harm, not what signals are worth.
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
from benchmarks.signals.world import SIGNALS, write_world
from data_prep.prepare import prepare
from mmrec.config import load_config
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.protocol import load_cases
from mmrec.evaluation.report_document import write_aside
from mmrec.loaded import load_run
from mmrec.training.train import train
from mmrec.training.validate import case_vectors, rank

CONFIG = Path(__file__).parent / "signals.yaml"
# with 1 what was passed over is learnt by heart: a log that says nothing lost .010 of NDCG@10
SHOWN_WEIGHT = 0.3


@dataclass(frozen=True)
class Row:
    """NDCG@10 on test of one run."""

    signal: str
    carries: bool
    is_read: bool
    seed: int
    ndcg: float


@dataclass(frozen=True)
class Difference:
    """What switching a signal off does.

    Attributes:
        with_it: mean NDCG@10 over seeds.
        without: the same, switched off.
        deviation: the larger of the two deviations over seeds.
    """

    signal: str
    carries: bool
    with_it: float
    without: float
    deviation: float

    @property
    def shows(self) -> bool:
        """Whether the figure falls by more than three deviations."""
        return self.with_it - self.without > 3 * self.deviation

    @property
    def is_as_made(self) -> bool:
        """Whether one that carries taste shows, and one that does not changes nothing beyond."""
        if self.carries:
            return self.shows
        return abs(self.with_it - self.without) <= 3 * self.deviation


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all signals; exit status 1 where one shows that should not, or does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(SIGNALS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "signals")
    given = parser.parse_args(arguments)
    seeds = [int(seed) for seed in given.seeds.split(",")]
    rows = []
    for signal in given.only.split(","):
        for carries in (True, False):
            for seed in seeds:
                rows += measure(
                    given.out, signal, carries=carries, num_users=given.users, seed=seed
                )
            write_results(rows, given.out, given.users)
    print(render(rows, given.users))
    return int(not all(each.is_as_made for each in differences(rows)))


def measure(out: Path, signal: str, *, carries: bool, num_users: int, seed: int) -> list[Row]:
    """Trains and tests with the signal and without it, on one made log."""
    folder = out / f"{signal}-{'carries' if carries else 'silent'}" / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    catalogue = write_world(
        folder / "source", signal, carries=carries, num_users=num_users, seed=seed
    )
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    rows = []
    for is_read in (True, False):
        switch = f"model.signals.{signal}={str(is_read).lower()}"
        if signal == "shown":  # read by a loss, not by the user model
            switch = f"training.shown_weight={SHOWN_WEIGHT if is_read else 0.0}"
        changes = [switch, f"training.seed={seed}"]
        run = folder / ("with" if is_read else "without")
        train(load_config(CONFIG, changes), folder / "data", run)
        found = ndcg_on_test(run)
        rows.append(Row(signal, carries, is_read, seed, found))
        print(f"{signal}, carries {carries}, read {is_read}, seed {seed}: {found:.4f}", flush=True)
    return rows


def ndcg_on_test(run: Path) -> float:
    """Mean NDCG@10 over the test cases of a finished run."""
    loaded = load_run(run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    found = case_metrics(rank(cases, users, items).rank, cases.targets.offsets, ks=(10,))
    return float(found["ndcg@10"].mean())


def differences(rows: Sequence[Row]) -> list[Difference]:
    """With and without, signal by signal."""
    found = []
    for signal, carries in dict.fromkeys((row.signal, row.carries) for row in rows):
        figures = {
            is_read: [
                row.ndcg
                for row in rows
                if (row.signal, row.carries, row.is_read) == (signal, carries, is_read)
            ]
            for is_read in (True, False)
        }
        spread = max(stdev(each) if len(each) > 1 else 0.0 for each in figures.values())
        found.append(Difference(signal, carries, mean(figures[True]), mean(figures[False]), spread))
    return found


def render(rows: Sequence[Row], num_users: int) -> str:
    """The table in Markdown."""
    seeds = sorted({row.seed for row in rows})
    lines = [
        f"Simulated: {num_users:,} users; NDCG@10 on test, mean over seeds "
        f"{', '.join(map(str, seeds))}; ± the larger deviation over seeds",
        "",
        "| signal | says what is wanted | read | switched off | difference | ± |",
        "|---|---|---|---|---|---|",
    ]
    for each in differences(rows):
        lines.append(
            f"| {each.signal} | {'yes' if each.carries else 'no'} | {each.with_it:.4f} | "
            f"{each.without:.4f} | {each.with_it - each.without:+.4f} | {each.deviation:.4f} |"
        )
    return "\n".join(lines) + "\n"


def write_results(rows: Sequence[Row], out: Path, num_users: int) -> None:
    """Writes the table and its figures."""
    document = {"users": num_users, "rows": [asdict(row) for row in rows]}
    write_aside(out / "results.json", (json.dumps(document, indent=1) + "\n").encode())
    write_aside(out / "results.md", render(rows, num_users).encode())


if __name__ == "__main__":
    sys.exit(main())
