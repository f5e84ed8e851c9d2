"""Two catalogues whose logs and tables say everything there is to say: a plug-in of pytest.

    shop:  view, buy · stars · device · region and age of users · colour of items · since when
    songs: play, skip · share heard · place · mood of items

pytest_plugins = ["told_catalogue"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from data_prep.prepare import prepare
from mmrec.config import Config, parse_config

NUM_ITEMS, NUM_USERS = 14, 24
MONDAY = 1_700_438_400  # 2023-11-20 00:00 UTC
LATE = "i3"  # listed from half a year after that Monday
HALF_A_YEAR = 182 * 86_400
WORDS = ("quiet", "red", "river", "storm", "night", "garden", "old", "machine", "letter", "sea")
SIGNALS = {"events": True, "values": True, "times": True, "context": True, "users": True}
HEADS = {
    "buys": {"kind": "binary", "positive": ["buy"], "scorer": "bilinear"},
    "likes": {"kind": "binary", "positive": ["buy"], "among": ["view", "buy"], "scorer": "cosine"},
    "stars": {"kind": "value", "scorer": "mlp"},
}
LABELS: dict[str, Any] = {"colour": {}}


def write_told(source: Path, kind: str, *, seed: int) -> Path:
    """Tables of a shop, or of songs, and the catalogue file."""
    source.mkdir(parents=True)
    random = np.random.default_rng(seed)
    is_shop = kind == "shop"
    label = ("colour", ["red", "blue"]) if is_shop else ("mood", ["calm", "loud"])
    items = [
        {
            "id": f"i{number}",
            "title": f"{kind} {' '.join(random.choice(WORDS, 4))}",
            label[0]: label[1][number % 2],
            "since": MONDAY + HALF_A_YEAR if f"i{number}" == LATE else MONDAY - 86_400,
        }
        for number in range(NUM_ITEMS)
    ]
    pl.DataFrame(items).write_csv(source / "items.csv")
    types = ("view", "buy") if is_shop else ("play", "skip")
    places = ["phone", "desktop", ""] if is_shop else ["home", "road", ""]
    log = []
    for user in range(NUM_USERS):
        for step, item in enumerate(random.permutation(NUM_ITEMS)[: 4 + user % 8]):
            when = MONDAY + 86_400 * step + int(random.integers(86_400))
            value = 1 + int(random.integers(5)) if is_shop else float(random.random())
            told = (types[int(random.integers(2))], value, places[int(random.integers(3))])
            log.append((f"u{user}", f"i{item}", when, *told))
    where = "device" if is_shop else "place"
    names = ["user", "item", "at", "what", "value", where]
    pl.DataFrame(log, names, orient="row").write_csv(source / "log.csv")
    catalogue: dict[str, Any] = {
        "name": kind,
        "kind": "shop" if is_shop else "music",
        "repeats": "forbid" if is_shop else "allow",
        "items": {
            "table": "items.csv",
            "id": "id",
            "text": ["title"],
            "attributes": {label[0]: {"type": "category"}},
            "available": {"from": "since"},
        },
        "interactions": {
            "table": "log.csv",
            "user": "user",
            "item": "item",
            "time": "at",
            "event": "what",
            "value": "value",
            "context": [where],
        },
    }
    if is_shop:
        users = [
            {"user": f"u{user}", "region": ["north", "south", ""][user % 3], "age": 20 + user}
            for user in range(NUM_USERS)
        ]
        pl.DataFrame(users).write_csv(source / "users.csv")
        catalogue["users"] = {
            "table": "users.csv",
            "id": "user",
            "attributes": {"region": {"type": "category"}, "age": {"type": "number"}},
        }
    path = source / "catalogue.yaml"
    path.write_text(yaml.safe_dump(catalogue), encoding="utf-8")
    return path


def told_config(
    model: dict[str, Any] | None = None, catalogues: tuple[str, ...] = (), **training: Any
) -> Config:
    """Everything that may be read and told, without dropout, whose masks depend on the ranks."""
    return parse_config(
        {
            "name": "told",
            "catalogues": {name: {} for name in catalogues},
            "data": {"max_history": 8},
            "encoders": {
                "text": {
                    "num_tokens": 4,
                    "trainable_blocks": "all",
                    "options": {"width": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0},
                }
            },
            "model": {
                "width": 16,
                "fusion": {
                    "num_latents": 2, "num_heads": 2, "dropout": 0.0, "feature_dropout": 0.0,
                },
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0, "start": True},
                "signals": SIGNALS,
                "heads": HEADS,
                "labels": LABELS,
                **(model or {}),
            },
            "training": {
                "max_epochs": 2,
                "batch_size": 7,
                "fresh_items": 5,
                "warmup_steps": 1,
                "learning_rate": 0.02,
                "optimiser": "sgd",
                "precision": "fp32",
                "log_every": 1,
                **training,
            },
        }
    )  # fmt: skip


def _prepared(factory: pytest.TempPathFactory, kind: str, seed: int) -> Path:
    folder = factory.mktemp(f"told_{kind}")
    catalogue = write_told(folder / "source", kind, seed=seed)
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    return folder / "data"


@pytest.fixture(scope="session")
def told_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared shop; its tables lie beside it in `source`."""
    return _prepared(tmp_path_factory, "shop", 0)


@pytest.fixture(scope="session")
def told_songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared songs."""
    return _prepared(tmp_path_factory, "songs", 1)
