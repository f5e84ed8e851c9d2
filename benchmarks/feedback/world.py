"""A made catalogue, a short log to begin with, and users who click on what they are shown.

What users like is that of `data_prep.tastes`: pairs of attributes. An item that answers a wish of
the user is clicked with probability CLICK, any other with CHANCE, whatever its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from data_prep.drawing import GESTURES, TEXTURES, TOPICS
from data_prep.tastes import POPULARITY_SPREAD, answers_wish, draw_attributes, draw_log

CLICK, CHANCE = 0.7, 0.05
EVENTS_BEFORE = 5
_WIDTH, _NOISE = 16, 0.3
LOG_TYPES = {"user": pl.String, "item": pl.String, "at": pl.Int64, "event": pl.String}


@dataclass(frozen=True)
class World:
    """The folder of a made catalogue and who answers to what.

    Attributes:
        source: folder of items.parquet, log.parquet and catalogue.yaml.
        likes: (U, N) bool, hidden from every model.
        seed: of everything drawn.
    """

    source: Path
    likes: NDArray[np.bool_]
    seed: int

    @property
    def catalogue(self) -> Path:
        """The catalogue file."""
        return self.source / "catalogue.yaml"

    @property
    def user_ids(self) -> list[str]:
        """U ids."""
        return [f"u{number}" for number in range(len(self.likes))]

    def clicks(self, user_id: str, item_ids: Sequence[str], round_number: int) -> list[str]:
        """What a user clicks on of a list; in a round the same on the same item, whoever shows it.

        Args:
            user_id: of the user.
            item_ids: the list.
            round_number: of the draws.
        """
        user = int(user_id[1:])
        luck = np.random.default_rng([self.seed, round_number, user]).random(self.likes.shape[1])
        rows = [int(item_id[1:]) for item_id in item_ids]
        chance = np.where(self.likes[user, rows], CLICK, CHANCE)
        clicked = luck[rows] < chance
        return [item_id for item_id, is_met in zip(item_ids, clicked, strict=True) if is_met]


def write_world(source: Path, *, num_items: int, num_users: int, seed: int) -> World:
    """Writes a made catalogue with a short log.

    Args:
        source: new folder.
        num_items: N.
        num_users: U, of EVENTS_BEFORE events each on the average.
        seed: of everything drawn.
    """
    source.mkdir(parents=True)
    random = np.random.default_rng([seed, 0])
    attributes = draw_attributes(random, num_items)
    popularity = random.normal(0, POPULARITY_SPREAD, num_items)
    log, wishes = draw_log(attributes, popularity, num_users, EVENTS_BEFORE, seed=seed)
    look = random.normal(0, _NOISE, (num_items, _WIDTH))
    for codes, names in (
        (attributes.texture, TEXTURES),
        (attributes.gesture, GESTURES),
        (attributes.topic, TOPICS),
    ):
        look += random.normal(size=(len(names), _WIDTH))[codes]
    items = {"item": [f"i{n}" for n in range(num_items)], "look": look.tolist()}
    pl.DataFrame(items).write_parquet(source / "items.parquet")
    ids = {
        "user": [f"u{n}" for n in log["user_index"]],
        "item": [f"i{n}" for n in log["item_index"]],
    }
    events = {**ids, "at": log["position"], "event": ["click"] * len(log)}
    pl.DataFrame(events, schema=LOG_TYPES).write_parquet(source / "log.parquet")
    catalogue = {
        "name": "feedback",
        "kind": "shop",
        "repeats": "forbid",
        "items": {"table": "items.parquet", "id": "item", "vectors": {"look": "look"}},
        "interactions": {
            "table": "log.parquet", "user": "user", "item": "item", "order": "at",
            "event": "event", "shown": ["shown"],
        },
        "split": {"protocol": "none"},
    }  # fmt: skip
    path = source / "catalogue.yaml"
    path.write_text(yaml.safe_dump(catalogue, sort_keys=False), encoding="utf-8")
    return World(source, answers_wish(attributes, wishes), seed)
