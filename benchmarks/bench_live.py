"""Live changes with 50,000 items: a user's event and his next list, an item out of stock, a price.

A model of ids on a made log, trained for an epoch, since time does not depend on the weights. The
server has a process of its own with one worker; every list is checked for what it must reflect.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import torch
from bench_service import served
from measure import arguments, report

from data_prep.prepare import prepare
from mmrec.config import parse_config
from mmrec.training.train import train

K = 10
EVENTS_OF_USER = 25
CATALOGUE = """\
name: live
kind: shop
repeats: forbid
items: {table: items.parquet, id: item, attributes: {price: {type: number}}}
interactions: {table: log.parquet, user: user, item: item, order: at}
split: {protocol: none}
"""


def make_run(folder: Path, num_items: int) -> Path:
    """A run on a log in which every item is met twice."""
    source, random = folder / "source", np.random.default_rng(0)
    source.mkdir()
    ids = [f"i{number}" for number in range(num_items)]
    prices = random.uniform(1, 100, num_items)
    pl.DataFrame({"item": ids, "price": prices}).write_parquet(source / "items.parquet")
    met = np.concatenate([random.permutation(num_items) for _ in range(2)])
    log = {
        "user": [f"u{place // EVENTS_OF_USER}" for place in range(len(met))],
        "item": [ids[item] for item in met],
        "at": np.arange(len(met)),
    }
    pl.DataFrame(log).write_parquet(source / "log.parquet")
    (source / "catalogue.yaml").write_text(CATALOGUE)
    prepare(source / "catalogue.yaml", source, folder / "prepared", num_workers=1)
    config = parse_config(
        {
            "name": "live",
            "model": {"item": "id", "width": 64, "history": {"num_blocks": 2, "num_heads": 2}},
            "training": {
                "max_epochs": 1, "batch_size": 128, "precision": "fp32", "candidates": 1024,
            },
        }
    )  # fmt: skip
    train(config, folder / "prepared", folder / "run")
    return folder / "run"


def next_list(http: httpx.Client, user_id: str, maximum: float | None = None) -> list[str]:
    """Ids of a user's list, below a price where one is given."""
    where = [] if maximum is None else [{"field": "price", "maximum": maximum}]
    asked = {"user_id": user_id, "k": K, "wishes": {"where": where}}
    answer = http.post("/v1/recommend", json=asked).raise_for_status().json()
    return [each["item_id"] for each in answer["items"]]


def after_events(http: httpx.Client, user_ids: list[str]) -> list[float]:
    """Seconds from sending an event until the list that reflects it is there, for each user."""
    found = []
    for user_id in user_ids:
        item_id = next_list(http, user_id)[0]
        began = time.perf_counter()
        event = {"user_id": user_id, "item_id": item_id}
        http.post("/v1/events", json={"events": [event]}).raise_for_status()
        shown = next_list(http, user_id)
        found.append(time.perf_counter() - began)
        assert item_id not in shown and len(shown) == K
    return found


def after_changes(http: httpx.Client, user_ids: list[str], *, price: bool) -> list[float]:
    """Seconds from a change of an item until the list that reflects it is there.

    Args:
        http: of the service.
        user_ids: whose lists are asked for.
        price: the item becomes too dear; else it is out of stock, and comes back afterwards.
    """
    found, limit = [], 50.0 if price else None
    for user_id in user_ids:
        item_id = next_list(http, user_id, limit)[0]
        change = {"attributes": {"price": 99.0}} if price else {"listed": False}
        began = time.perf_counter()
        http.put(f"/v1/items/{item_id}", json=change).raise_for_status()
        shown = next_list(http, user_id, limit)
        found.append(time.perf_counter() - began)
        assert item_id not in shown and len(shown) == K
        if not price:
            http.put(f"/v1/items/{item_id}", json={"listed": True}).raise_for_status()
    return found


def main() -> None:
    """Make a run, serve it, and change what its lists are made of."""
    given = arguments(__doc__)
    small = given.small
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    num_items, num_asked = (2_000, 20) if small else (50_000, 200)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        run = make_run(folder, num_items)
        num_users = 2 * num_items // EVENTS_OF_USER
        config = {"items": num_items, "users": num_users, "asked": num_asked, "k": K}
        random = np.random.default_rng(0)
        with served(run, folder) as address, httpx.Client(base_url=address, timeout=30) as http:

            def some_users() -> list[str]:
                return [f"u{user}" for user in random.choice(num_users, num_asked, replace=False)]

            after_events(http, some_users()[:10])  # warm
            figures: dict[str, Callable[[httpx.Client, list[str]], list[float]]] = {
                "live_event_p95": after_events,
                "live_stock_p95": partial(after_changes, price=False),
                "live_price_p95": partial(after_changes, price=True),
            }
            for name, measured in figures.items():
                rounds = [measured(http, some_users()) for _ in range(given.rounds)]
                values = [1000 * float(np.percentile(each, 95)) for each in rounds]
                bar = 100.0 if name == "live_event_p95" else None
                report(name, values, unit="ms", bar=bar, small=small, config=config)


if __name__ == "__main__":
    main()
