"""What benchmarks of training train on: MovieLens-1M without its media, or a made log of its size.

The made log stands in where MovieLens-1M is absent, and at a reduced size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from measure import ROOT, SHARED_DATA

from data_prep.prepare import prepare
from mmrec.config import Config, load_config

CONFIG = ROOT / "configs" / "movielens-1m-id.yaml"
MOVIELENS = ROOT / "configs" / "catalogues" / "movielens-1m.yaml"
SMALL = ("model.width=32", "data.max_history=50", "training.batch_size=32")

CATALOGUE = """\
name: generated
kind: video
items: {table: items.csv, id: item_id, text: [title]}
interactions: {table: log.parquet, user: user, item: item, order: order}
"""


def generate(source: Path, *, num_users: int, num_items: int, median: int) -> Path:
    """A log with the lengths of MovieLens-1M: log-normal, median 96, quartiles 47 and 194.

    Items are drawn without repeats, by a popularity that falls with the rank; returns the
    catalogue file.
    """
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(median), 1.043, num_users)).astype(np.int64)
    lengths = lengths.clip(min(18, median), num_items * 2 // 3)
    popularity = -np.log(np.arange(1, num_items + 1) + num_items / 20)
    users, items, orders = [], [], []
    for user, length in enumerate(lengths):
        # the largest of popularity and Gumbel noise: a draw without replacement
        drawn = np.argsort(-(popularity + rng.gumbel(size=num_items)))[:length]
        users.append(np.full(length, user))
        items.append(rng.permutation(drawn))
        orders.append(np.arange(length))
    columns = {"user": users, "item": items, "order": orders}
    log = pl.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    log.write_parquet(source / "log.parquet")
    titles = [f"title {item}" for item in range(num_items)]
    pl.DataFrame({"item_id": range(num_items), "title": titles}).write_csv(source / "items.csv")
    path = source / "catalogue.yaml"
    path.write_text(CATALOGUE)
    return path


def prepare_log(folder: Path, small: bool) -> str:
    """Prepares MovieLens-1M without its media, or a made log; returns which it is."""
    out, source = folder / "prepared", SHARED_DATA / "ml-1m"
    if source.is_dir() and not small:
        overrides = ("items.text=[title]", "items.image=[]")
        prepare(MOVIELENS, source, out, overrides=overrides, num_workers=1)
        return "movielens-1m"
    source = folder / "source"
    source.mkdir()
    sizes = (400, 300, 30) if small else (6040, 3416, 96)
    num_users, num_items, median = sizes
    catalogue = generate(source, num_users=num_users, num_items=num_items, median=median)
    prepare(catalogue, source, out, num_workers=1)
    return "made"


def read_config(small: bool, *changes: str) -> Config:
    """Settings of configs/movielens-1m-id.yaml, for whichever log `prepare_log` found."""
    # the one split there is: its name differs between the two logs
    return load_config(CONFIG, ["data.split=null", *(SMALL if small else ()), *changes])
