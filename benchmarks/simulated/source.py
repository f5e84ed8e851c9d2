"""Simulated users of a real catalogue: a copy of it with a log drawn from tastes for what it says.

    python -m benchmarks.simulated.source CATALOGUE --source FOLDER --out OUT [--users N] …

    FOLDER/table, media ─► OUT/the same and interactions.parquet, and of all but stamps
                           OUT/new.csv or .parquet: ten items that nobody has met, to score

CATALOGUE is one of `stamps`, `music` (music-clips), `video` (exercise-clips) and `shop` (fashion).
A figure from such a log says that the parts work together; it does not say how good they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.simulated import tastes
from data_prep.tastes import POPULARITY_SPREAD

FEWEST_EVENTS = 8  # a cold target needs five warm events before it
MARK = "simulation.json"

Liking = Callable[[pl.DataFrame, np.random.Generator, int], tastes.Floats]
START = 1_735_689_600  # 2025-01-01 UTC
YEAR_S, GAP_S = 365 * 86_400, 6 * 3600
BOUGHT_AT = 4.0  # nats of liking at which every second view ends in a purchase


@dataclass(frozen=True)
class World:
    """A real folder and what its simulated users like.

    Attributes:
        table: of the items.
        id: its column of ids.
        media: folders copied with it.
        liking: items, generator, number of users -> (U, N) nats.
        where: of which rows users know; all where None.
        add: more columns, which are simulated too.
        buys: whether events are told as `view` or `purchase`, by how well the item is liked.
        num_new: rows at the end of the table that go into `new` in its place.
    """

    table: str
    id: str
    media: tuple[str, ...]
    liking: Liking
    where: str | None = None
    add: Callable[[pl.DataFrame, np.random.Generator], pl.DataFrame] | None = None
    buys: bool = False
    num_new: int = 10


WORLDS = {
    "stamps": World("items.csv", "item_id", ("images", "sounds"), tastes.stamps, num_new=0),
    # the second clip of a track would give it away
    "music": World("clips.csv", "track_id", ("audio",), tastes.music, where="part = '0'"),
    "video": World("items.csv", "item_id", ("video",), tastes.video),
    "shop": World(
        "items.parquet", "item_id", ("images",), tastes.shop, add=tastes.with_prices, buys=True
    ),
}  # fmt: skip


def write_source(
    folder: Path,
    out: Path,
    *,
    num_users: int,
    events_per_user: int,
    seed: int = 0,
    world: str = "stamps",
) -> Path:
    """Copies the table and media of a real folder and writes the simulated log beside them.

    The copy is made because a catalogue's tables and media lie in one folder. A folder that was
    made by the same arguments is left as it is.

    Args:
        folder: the real one.
        out: folder to write, made whole beside it and then renamed.
        num_users: users to simulate.
        events_per_user: mean length of their histories.
        seed: of all that is drawn.
        world: what the folder is, of `WORLDS`.

    Returns:
        `out`.
    """
    settings = {"num_users": num_users, "events_per_user": events_per_user, "seed": seed}
    mark = json.dumps({**settings, "world": world}, sort_keys=True) + "\n"
    written = out / MARK
    if written.is_file() and written.read_text(encoding="utf-8") == mark:
        return out
    about = WORLDS[world]
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        aside.chmod(0o755)  # mkdtemp makes a folder that only its owner can read
        for name in about.media:
            shutil.copytree(folder / name, aside / name, copy_function=shutil.copyfile)
        items = read_table(folder / about.table)
        if about.where is not None:
            items = items.sql(f"SELECT * FROM self WHERE {about.where}")
        if about.add is not None:
            items = about.add(items, np.random.default_rng([seed, 1]))
        if about.num_new:
            write_table(items.tail(about.num_new), aside / f"new{Path(about.table).suffix}")
            items = items.head(-about.num_new)
        write_table(items, aside / about.table)
        log = draw_log(items, about.liking, id_column=about.id, buys=about.buys, **settings)
        log.write_parquet(aside / "interactions.parquet")
        (aside / MARK).write_text(mark, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def read_table(path: Path) -> pl.DataFrame:
    """A table of items; every column of a CSV is text."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path, infer_schema=False)


def write_table(items: pl.DataFrame, path: Path) -> None:
    """Writes it in the form that its name says."""
    if path.suffix == ".parquet":
        items.write_parquet(path)
    else:
        items.write_csv(path)


def draw_log(
    items: pl.DataFrame,
    liking: Liking,
    *,
    num_users: int,
    events_per_user: int,
    seed: int,
    id_column: str = "item_id",
    buys: bool = False,
) -> pl.DataFrame:
    """Draws who met which item: each event from softmax(liking + popularity) of what is left.

    Args:
        items: a row an item, with the columns that `liking` reads.
        liking: items, generator, number of users -> (U, N) nats.
        num_users: users to simulate.
        events_per_user: mean length of their histories, at most a quarter of the items.
        seed: of all that is drawn.
        id_column: of the items' ids.
        buys: whether an event is a `view` or a `purchase`; the chance is sigmoid(liking - 4).

    Returns:
        user_id, item_id, position, time (seconds; hours apart) and, with `buys`, action; users in
        order, no item twice.
    """
    rng = np.random.default_rng(seed)
    num_items = len(items)
    likes = liking(items, rng, num_users)
    scores = likes + rng.normal(0, POPULARITY_SPREAD, num_items)
    # the largest of score + Gumbel noise are draws without replacement from the softmax
    best_first = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)
    lengths = np.clip(rng.poisson(events_per_user, num_users), FEWEST_EVENTS, num_items // 4)
    # what is drawn first is liked best; shuffled, for the last event is the one that is asked
    histories = [rng.permutation(row[:n]) for row, n in zip(best_first, lengths, strict=True)]
    gaps = rng.exponential(GAP_S, int(lengths.sum()))
    ends = np.cumsum(lengths)
    passed = np.cumsum(gaps)
    passed -= np.repeat(passed[ends - lengths], lengths)  # of each user's first event
    start = np.repeat(START + rng.integers(YEAR_S, size=num_users), lengths)
    user, item = np.repeat(np.arange(num_users), lengths), np.concatenate(histories)
    log = pl.DataFrame(
        {
            "user_id": [f"u{k:06d}" for k in user],
            "item_id": items[id_column].to_numpy()[item],
            "position": np.concatenate([np.arange(n) for n in lengths]),
            "time": (start + passed).astype(np.int64),
        }
    ).with_columns(pl.col("item_id").cast(pl.String))
    if buys:
        chance = 1 / (1 + np.exp(BOUGHT_AT - likes[user, item]))
        bought = rng.random(len(item)) < chance
        log = log.with_columns(pl.Series("action", np.where(bought, "purchase", "view")))
    return log


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit status 2 where the real folder is absent."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("world", choices=sorted(WORLDS), metavar="CATALOGUE")
    parser.add_argument("--source", type=Path, required=True, help="the real folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--events", type=int, default=16, help="of a user, on average")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not (given.source / WORLDS[given.world].table).is_file():
        print(f"{given.source}: no {WORLDS[given.world].table} there", file=sys.stderr)
        return 2
    out = write_source(
        given.source,
        given.out,
        num_users=given.users,
        events_per_user=given.events,
        seed=given.seed,
        world=given.world,
    )
    log = pl.scan_parquet(out / "interactions.parquet").select(pl.len()).collect().item()
    print(f"{out}: {given.users:,} simulated users, {log:,} events")
    return 0


if __name__ == "__main__":
    sys.exit(main())
