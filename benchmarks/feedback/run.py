"""What feedback earns: rounds of lists, simulated clicks and a refit, beside a model left as it is.

    python -m benchmarks.feedback.run [--users 500] [--items 300] [--rounds 5] [--seeds 0,1,2]

    service ─ lists, clicks ─► database ─ mmrec events --lists ─► log ─ prepare --update ─► train
       ▲                                                            (training.start_from) ─┐
       └──────────────────────────────── the next round's model ◄──────────────────────────┘

    OUT/seed-K/          the made catalogue, its prepared folder, runs, databases
    OUT/results.md .json clicks for each item shown, by round: mean and deviation over seeds

The users are simulated (`benchmarks.feedback.world`): the table says that the loop closes and what
goes round in it is learnt, not what feedback is worth in a shop. Both models know every click in
the histories of their users at once; only one of them is trained on it.
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

import polars as pl
from fastapi.testclient import TestClient

from benchmarks.feedback.world import World, write_world
from benchmarks.runs import ROOT
from data_prep.prepare import prepare
from mmrec.config import load_config
from mmrec.evaluation.report_document import write_aside
from mmrec.serving.app import build_app
from mmrec.serving.event_log import write_log
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.training.train import train

CONFIG = Path(__file__).parent / "feedback.yaml"
LIST_LENGTH = 5
REFIT_EPOCHS = 8


@dataclass(frozen=True)
class Row:
    """The rewards of one seed.

    Attributes:
        seed: of the world and the runs.
        refit: clicks for each item shown, by round, of the model that is trained on them.
        frozen: the same of the first round's model.
    """

    seed: int
    refit: list[float]
    frozen: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Go round the loop for every seed; exit status 1 where feedback does not pay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "feedback")
    given = parser.parse_args(arguments)
    rows = []
    for seed in map(int, given.seeds.split(",")):
        row = measure(
            given.out / f"seed-{seed}", num_items=given.items, num_users=given.users,
            rounds=given.rounds, seed=seed,
        )  # fmt: skip
        rows.append(row)
        text = render(rows, num_users=given.users, num_items=given.items)
        write_aside(given.out / "results.md", text.encode())
        write_aside(given.out / "results.json", json.dumps([asdict(r) for r in rows]).encode())
    print(text)
    return int(not all(map(pays, rows)))


def measure(
    folder: Path,
    *,
    num_items: int,
    num_users: int,
    rounds: int,
    seed: int,
    changes: Sequence[str] = (),
    refit_epochs: int = REFIT_EPOCHS,
) -> Row:
    """Goes round the loop with one made catalogue.

    Args:
        folder: of the seed; emptied first.
        num_items: N.
        num_users: U; each is shown a list in every round.
        rounds: how often lists are shown; between two of them one model is trained on.
        seed: of the catalogue and the runs.
        changes: settings of every run.
        refit_epochs: that a refit takes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    world = write_world(folder / "source", num_items=num_items, num_users=num_users, seed=seed)
    data = folder / "data"
    prepare(world.catalogue, world.source, data, num_workers=1)
    settings = [*changes, f"training.seed={seed}"]
    first = folder / "run-1"
    train(load_config(CONFIG, settings), data, first)
    url = f"sqlite:///{(folder / 'frozen.sqlite').resolve()}"
    frozen = [show_round(world, first, url, number) for number in range(1, rounds + 1)]
    refit, run = [], first
    for number in range(1, rounds + 1):
        # the log has all clicks of earlier rounds, so that each round's database begins empty
        url = f"sqlite:///{(folder / f'round-{number}.sqlite').resolve()}"
        refit.append(show_round(world, run, url, number))
        print(f"seed {seed}, round {number}: {refit[-1]:.4f}, frozen {frozen[number - 1]:.4f}",
              flush=True)  # fmt: skip
        if number < rounds:
            append_feedback(world, url)
            prepare(world.catalogue, world.source, data, num_workers=1, update=True)
            own = [
                *settings, f"training.start_from={run}", f"training.max_epochs={refit_epochs}",
            ]  # fmt: skip
            run = folder / f"run-{number + 1}"
            train(load_config(CONFIG, own), data, run)
    return Row(seed, refit, frozen)


def show_round(world: World, run: Path, url: str, number: int) -> float:
    """Shows every user a list and sends his clicks; returns clicks for each item shown."""
    num_shown, num_clicked = 0, 0
    service = Service(ServiceSettings(path=run, database=url))
    with TestClient(build_app(service)) as client:
        for user_id in world.user_ids:
            answer = client.post("/v1/recommend", json={"user_id": user_id, "k": LIST_LENGTH})
            shown = answer.raise_for_status().json()
            item_ids = [each["item_id"] for each in shown["items"]]
            clicked = world.clicks(user_id, item_ids, number)
            num_shown, num_clicked = num_shown + len(item_ids), num_clicked + len(clicked)
            events = [
                {
                    "user_id": user_id, "item_id": item_id, "event": "click",
                    "request_id": shown["request_id"],
                }
                for item_id in clicked
            ]  # fmt: skip
            if events:
                client.post("/v1/events", json={"events": events}).raise_for_status()
    return num_clicked / max(1, num_shown)


def append_feedback(world: World, url: str) -> None:
    """Puts the events and the shown lists of a database behind the log."""
    told, log = world.source / "told.parquet", world.source / "log.parquet"
    write_log(url, told, world.catalogue, lists=True)
    both = pl.concat([pl.read_parquet(log), pl.read_parquet(told)], how="diagonal_relaxed")
    both.write_parquet(log)
    told.unlink()


def pays(row: Row) -> bool:
    """Whether the reward has risen against that of the frozen model, from which it starts.

    By itself it falls, whoever shows the lists: what was clicked does not come again, so that the
    items that a user likes are used up, and sooner by the better model.
    """
    return row.refit[-1] * row.frozen[0] > row.frozen[-1] * row.refit[0]


def render(rows: Sequence[Row], *, num_users: int, num_items: int) -> str:
    """The table in Markdown."""
    lines = [
        f"Clicks for each item shown: {num_users} simulated users, {num_items} items, lists of "
        f"{LIST_LENGTH}, {len(rows)} seeds (mean ± deviation).",
        "",
        "| round | trained on feedback | frozen |",
        "|---|---|---|",
    ]
    for number in range(len(rows[0].refit)):
        refit = _spread([row.refit[number] for row in rows])
        frozen = _spread([row.frozen[number] for row in rows])
        lines.append(f"| {number + 1} | {refit} | {frozen} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())
