"""Who likes which item of a real catalogue without a log: simulated users' tastes, from its table.

    a catalogue's table ─► liking (U, N) in nats; popularity and noise come on top (source.py)

Every medium of a catalogue says something that no other says as well, and several say much of the
same. A favourite is drawn by choosing an item at random and taking what it has, so that what is
common is liked by many. Columns that a model could read a taste off without looking at media are
left out of the catalogue files, unless attributes are the medium that is to tell it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# nats in the softmax over items
FIRST, SECOND, THIRD = 3.0, 2.0, 2.0
PRICE_SPREAD = 0.5  # standard deviation of the log of a price among things of one kind


def stamps(items: pl.DataFrame, rng: np.random.Generator, num_users: int) -> Floats:
    """Topics, drawings or photographs, real sounds or spoken names.

    Two topics are told by name and picture, the second by the picture, the third is heard. Reads
    subcategory and sound_kind.
    """
    folders = [name.split("/") for name in items["subcategory"]]
    is_drawing = np.array(["cartoon" in parts for parts in folders])
    topics = ["/".join([part for part in parts if part != "cartoon"][:2]) for parts in folders]
    sound = items["sound_kind"].fill_null("").to_numpy()
    topic = favourites(topics, rng, num_users, 2)
    likes_drawings = rng.random(num_users) < 0.5
    likes = np.where(rng.random(num_users) < 0.5, "effect", "spoken-fr")
    liking: Floats = (
        FIRST * topic
        + SECOND * (is_drawing == likes_drawings[:, None])
        + THIRD * (sound == likes[:, None])
    )
    return liking


def music(items: pl.DataFrame, rng: np.random.Generator, num_users: int) -> Floats:
    """Two styles, one source, and short, middling or long tracks.

    Styles are heard, the source is told by title and artist and heard, the length is an attribute.
    Reads style, package and track_length_s.
    """
    length = items["track_length_s"].cast(pl.Float64).to_numpy()
    third = np.searchsorted(np.quantile(length, [1 / 3, 2 / 3]), length)
    liking: Floats = (
        FIRST * favourites(items["style"].to_list(), rng, num_users, 2)
        + SECOND * favourites(items["package"].to_list(), rng, num_users, 1)
        + THIRD * favourites(third.tolist(), rng, num_users, 1)
    )
    return liking


def video(items: pl.DataFrame, rng: np.random.Generator, num_users: int) -> Floats:
    """Two parts of the body, one kind of equipment, and one muscle that is trained on the side.

    Part and equipment are told by the text and seen in the clip, the muscle is an attribute. Reads
    body_part, equipment and secondary.
    """
    beside = [names.partition("|")[0] for names in items["secondary"].fill_null("")]
    liking: Floats = (
        FIRST * favourites(items["body_part"].to_list(), rng, num_users, 2)
        + SECOND * favourites(items["equipment"].to_list(), rng, num_users, 1)
        + THIRD * favourites(beside, rng, num_users, 1)
    )
    return liking


def shop(items: pl.DataFrame, rng: np.random.Generator, num_users: int) -> Floats:
    """Two kinds of article, one colour and one band of prices.

    Kinds are told by the title and seen in the photo, colours are seen and told by some titles, the
    price is an attribute. Reads articleType, baseColour and price.
    """
    log_price = np.log(items["price"].to_numpy())
    band = np.searchsorted(np.quantile(log_price, [0.25, 0.5, 0.75]), log_price)
    liking: Floats = (
        FIRST * favourites(items["articleType"].to_list(), rng, num_users, 2)
        + SECOND * favourites(items["baseColour"].to_list(), rng, num_users, 1)
        + THIRD * favourites(band.tolist(), rng, num_users, 1)
    )
    return liking


def with_prices(items: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The shop's table with a simulated price: a level for each kind of article, and a spread."""
    kinds, kind = np.unique(items["articleType"].to_list(), return_inverse=True)
    level = rng.normal(np.log(30), 0.7, len(kinds))
    price = np.exp(level[kind] + rng.normal(0, PRICE_SPREAD, len(items)))
    return items.with_columns(pl.Series("price", np.round(price, 2)))


def favourites(
    values: Sequence[object], rng: np.random.Generator, num_users: int, num_favourites: int
) -> NDArray[np.bool_]:
    """(U, N) whether an item has one of the user's favourite values of a column.

    A favourite is the value of a random item, so that common values are favourites more often.
    """
    code = np.unique(np.asarray(values, dtype=str), return_inverse=True)[1]
    chosen = code[rng.integers(len(values), size=(num_users, num_favourites))]  # (U, F)
    found: NDArray[np.bool_] = (code == chosen[:, :, None]).any(1)
    return found
