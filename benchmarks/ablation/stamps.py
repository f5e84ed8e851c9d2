"""Simulated users of real stamps: a log drawn from tastes for what the table says of each.

    STAMPS/items.csv, images, sounds ─► OUT/the same and interactions.parquet

A user has two favourite topics (the first two levels of the subcategory: the name tells them, and
so does the picture), likes drawings or likes photographs (the picture alone shows it), and likes
real sounds or likes spoken names (only heard). Each medium thus says something that no other does,
and two of them say much of the same. None of the columns tastes are made of reaches a model.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_prep.tastes import POPULARITY_SPREAD

# nats in the softmax over items
TOPIC_STRENGTH = 3.0
STYLE_STRENGTH = 2.0
SOUND_STRENGTH = 2.0
FEWEST_EVENTS = 8  # a cold target needs five warm events before it
MARK = "simulation.json"


def write_source(
    stamps: Path, out: Path, *, num_users: int, events_per_user: int, seed: int = 0
) -> Path:
    """Copies the stamps' table and media and writes the simulated log beside them.

    The copy is made because a catalogue's tables and media lie in one folder. A folder that was
    made by the same arguments is left as it is.

    Args:
        stamps: the real folder.
        out: folder to write, made whole beside it and then renamed.
        num_users: users to simulate.
        events_per_user: mean length of their histories.
        seed: of all that is drawn.

    Returns:
        `out`.
    """
    settings = {"num_users": num_users, "events_per_user": events_per_user, "seed": seed}
    mark = json.dumps(settings, sort_keys=True) + "\n"
    written = out / MARK
    if written.is_file() and written.read_text(encoding="utf-8") == mark:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        aside.chmod(0o755)  # mkdtemp makes a folder that only its owner can read
        for name in ("images", "sounds"):
            shutil.copytree(stamps / name, aside / name, copy_function=shutil.copyfile)
        shutil.copyfile(stamps / "items.csv", aside / "items.csv")
        log = draw_log(pl.read_csv(stamps / "items.csv", infer_schema=False), **settings)
        log.write_parquet(aside / "interactions.parquet")
        (aside / MARK).write_text(mark, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def draw_log(
    items: pl.DataFrame, *, num_users: int, events_per_user: int, seed: int
) -> pl.DataFrame:
    """Draws who met which item: each event from softmax(affinity + popularity) of what is left.

    Args:
        items: item_id, subcategory, sound_kind; one row an item.
        num_users: users to simulate.
        events_per_user: mean length of their histories, at most a quarter of the items.
        seed: of all that is drawn.

    Returns:
        user_id, item_id, position; users in order, no item twice.
    """
    rng = np.random.default_rng(seed)
    num_items = len(items)
    scores = affinity(items, rng, num_users) + rng.normal(0, POPULARITY_SPREAD, num_items)
    # the largest of score + Gumbel noise are draws without replacement from the softmax
    best_first = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)
    lengths = np.clip(rng.poisson(events_per_user, num_users), FEWEST_EVENTS, num_items // 4)
    # what is drawn first is liked best; shuffled, for the last event is the one that is asked
    histories = [rng.permutation(row[:n]) for row, n in zip(best_first, lengths, strict=True)]
    user = np.repeat(np.arange(num_users), lengths)
    return pl.DataFrame(
        {
            "user_id": [f"u{k:06d}" for k in user],
            "item_id": items["item_id"].to_numpy()[np.concatenate(histories)],
            "position": np.concatenate([np.arange(n) for n in lengths]),
        }
    )


def affinity(items: pl.DataFrame, rng: np.random.Generator, num_users: int) -> NDArray[np.float64]:
    """How much each user likes each item, popularity apart: (U, N) nats.

    A favourite topic is that of a random item, so that large topics are favourites more often.
    """
    folders = [name.split("/") for name in items["subcategory"]]
    is_drawing = np.array(["cartoon" in parts for parts in folders])
    topics = ["/".join([part for part in parts if part != "cartoon"][:2]) for parts in folders]
    topic = np.unique(topics, return_inverse=True)[1]
    sound = items["sound_kind"].fill_null("").to_numpy()
    favourites = topic[rng.integers(len(items), size=(num_users, 2))]  # (U, 2)
    likes_drawings = rng.random(num_users) < 0.5
    likes = np.where(rng.random(num_users) < 0.5, "effect", "spoken-fr")
    liking: NDArray[np.float64] = (
        TOPIC_STRENGTH * (topic == favourites[:, :, None]).any(1)
        + STYLE_STRENGTH * (is_drawing == likes_drawings[:, None])
        + SOUND_STRENGTH * (sound == likes[:, None])
    )
    return liking
