"""Two made catalogues of one way to like things: other items, other users, another kind.

Items and tastes are those of `data_prep.tastes`: a user wishes for pairs of attributes that show in
different media. Here look and sound are ready-made vectors, the same map of attributes in every
catalogue, as one pretrained encoder would give them; texts are written. Where tastes are not to
overlap, each item's log is that of another item, so that media say nothing of what is liked in the
way in which they do elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from data_prep.drawing import GESTURES, MOODS, SHAPES, TEXTURES, TIMBRES, TOPICS, write_text
from data_prep.tastes import POPULARITY_SPREAD, Attributes, draw_attributes, draw_log

VECTOR_WIDTH, NOISE = 16, 0.3
_MAP_SEED = 20  # of what look and sound are in every catalogue


def write_world(
    folder: Path, name: str, *, overlaps: bool, num_items: int, num_users: int, seed: int
) -> Path:
    """Writes the tables and the catalogue file of a made catalogue.

    Args:
        folder: new.
        name: of the catalogue; its ids carry it.
        overlaps: whether what its media show is what its users choose by.
        num_items: N.
        num_users: U, of about forty events each.
        seed: of everything drawn.

    Returns:
        Path of catalogue.yaml; its --source is the folder.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    attributes = draw_attributes(random, num_items)
    popularity = random.normal(0, POPULARITY_SPREAD, num_items)
    log, _ = draw_log(attributes, popularity, num_users, 40, seed=seed)
    item = log["item_index"].to_numpy()
    if not overlaps:
        item = random.permutation(num_items)[item]
    texts = [
        write_text(random, topic=TOPICS[topic], mood=MOODS[mood])
        for topic, mood in zip(attributes.topic, attributes.mood, strict=True)
    ]
    pl.DataFrame(
        {
            "item": [f"{name}-{number}" for number in range(num_items)],
            "title": [title for title, _ in texts],
            "description": [description for _, description in texts],
            **{each: vectors.tolist() for each, vectors in _vectors(random, attributes).items()},
        }
    ).write_parquet(folder / "items.parquet")
    pl.DataFrame(
        {
            "user": [f"{name}-user-{number}" for number in log["user_index"]],
            "item": [f"{name}-{number}" for number in item],
            "at": log["timestamp"],
        }
    ).write_parquet(folder / "log.parquet")
    path = folder / "catalogue.yaml"
    path.write_text(yaml.safe_dump(_catalogue(name), sort_keys=False), encoding="utf-8")
    return path


def _vectors(random: np.random.Generator, attributes: Attributes) -> dict[str, NDArray[np.float32]]:
    """(N, VECTOR_WIDTH) of the look (texture, shape) and the sound (gesture, timbre) of items."""
    maps = np.random.default_rng(_MAP_SEED)
    found = {}
    for name, parts in (
        ("look", ((attributes.texture, TEXTURES), (attributes.shape, SHAPES))),
        ("sound", ((attributes.gesture, GESTURES), (attributes.timbre, TIMBRES))),
    ):
        vectors = random.normal(0, NOISE, (len(attributes), VECTOR_WIDTH))
        for codes, names in parts:
            vectors += maps.normal(size=(len(names), VECTOR_WIDTH))[codes]
        found[name] = vectors.astype(np.float32)
    return found


def _catalogue(name: str) -> dict[str, object]:
    return {
        "name": name,
        "kind": name,
        "repeats": "forbid",
        "items": {
            "table": "items.parquet",
            "id": "item",
            "text": ["title", "description"],
            "vectors": {"look": "look", "sound": "sound"},
        },
        "interactions": {"table": "log.parquet", "user": "user", "item": "item", "time": "at"},
        "split": {"protocol": "leave_one_out"},
    }
