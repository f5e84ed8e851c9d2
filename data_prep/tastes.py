"""Who likes what in a simulated catalogue, and the log that follows from it.

A user holds two wishes, each over attributes that show in different media, as in "striped with a
rising sound, or dotted with a text about the sea":

    first wish:  picture's texture = a  and  sound's gesture = b
    second wish: picture's texture = c  and  text's topic = d       (c differs from a)

Striped alone or rising alone says little; a striped picture with another sound is not wished for.
So no single medium, no mean colour and no sum of the media taken one by one explains the log. (A
Latin square, in which one attribute alone says nothing at all, was tried: encoders learnt from
scratch fit the items they saw by heart and nothing else.) The pair (b, d) drifts with time; the
shape of the next picture tends to follow the last one's; popularity is drawn without regard to the
attributes; no item is met twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_prep.drawing import GESTURES, MOODS, SHAPES, TEXTURES, TIMBRES, TOPICS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# nats in the softmax over items
WISH_STRENGTH = 3.5
SHAPE_STRENGTH = 1.5  # for the shape after the last one met: disc, square, triangle, star, disc
POPULARITY_SPREAD = 0.5  # standard deviation of log popularity
DRIFT_PROBABILITY = 0.04  # of the gesture, and of the topic, wished for moving on by one per event

_START = 1_640_995_200  # 2022-01-01 UTC; users arrive over two years
_YEAR_S = 365 * 86_400
_LOG_STREAM = 4  # numbers the random generator of the log; data_prep.simulate has 0 to 3


@dataclass(frozen=True)
class Attributes:
    """Hidden attributes of items, one row each; codes (N,) into the names in drawing."""

    texture: Ints
    shape: Ints
    gesture: Ints
    timbre: Ints
    topic: Ints
    mood: Ints

    def __len__(self) -> int:
        return len(self.texture)


@dataclass(frozen=True)
class Wishes:
    """What users wish for, one row each, (U,): see the module's first lines."""

    first_texture: Ints
    gesture: Ints
    second_texture: Ints
    topic: Ints

    def __len__(self) -> int:
        return len(self.first_texture)

    def rows(self, chosen: Ints) -> Wishes:
        """The wishes of some users."""
        return Wishes(**{name: codes[chosen] for name, codes in vars(self).items()})


def answers_wish(attributes: Attributes, wishes: Wishes) -> NDArray[np.bool_]:
    """Which item (N,) answers either wish of which user (U,): (U, N) bool."""
    first: NDArray[np.bool_] = (attributes.texture == wishes.first_texture[:, None]) & (
        attributes.gesture == wishes.gesture[:, None]
    )
    second = (attributes.texture == wishes.second_texture[:, None]) & (
        attributes.topic == wishes.topic[:, None]
    )
    # never both: the two textures differ
    answered: NDArray[np.bool_] = first | second
    return answered


def affinity(attributes: Attributes, wishes: Wishes, last_shape: Ints | None = None) -> Floats:
    """How much each user likes each item, popularity apart.

    Args:
        attributes: Of N items.
        wishes: Of U users.
        last_shape: (U,) shape of the picture met last, -1 before the first; None leaves it out.

    Returns:
        (U, N), in nats of the softmax that drew the log.
    """
    liking = WISH_STRENGTH * answers_wish(attributes, wishes).astype(np.float64)
    if last_shape is not None:
        follows = attributes.shape == ((last_shape + 1) % len(SHAPES))[:, None]
        liking += SHAPE_STRENGTH * (follows & (last_shape >= 0)[:, None])
    return liking


def draw_attributes(rng: np.random.Generator, num_items: int) -> Attributes:
    """Draws the hidden attributes; the cells of texture × gesture × topic are equally filled.

    Equal cells keep the promise that one attribute alone says little: with free draws the larger
    cells would leak some of it.
    """
    cells = np.arange(num_items) % _NUM_CELLS
    rng.shuffle(cells)
    return Attributes(
        texture=cells % len(TEXTURES),
        gesture=cells // len(TEXTURES) % len(GESTURES),
        topic=cells // (len(TEXTURES) * len(GESTURES)),
        shape=rng.integers(len(SHAPES), size=num_items),
        timbre=rng.integers(len(TIMBRES), size=num_items),
        mood=rng.integers(len(MOODS), size=num_items),
    )


_NUM_CELLS = len(TEXTURES) * len(GESTURES) * len(TOPICS)


def draw_wishes(rng: np.random.Generator, num_users: int) -> Wishes:
    """Draws the wishes users start with, all equally likely."""
    first = rng.integers(len(TEXTURES), size=num_users)
    return Wishes(
        first_texture=first,
        gesture=rng.integers(len(GESTURES), size=num_users),
        second_texture=(first + rng.integers(1, len(TEXTURES), size=num_users)) % len(TEXTURES),
        topic=rng.integers(len(TOPICS), size=num_users),
    )


_USERS_AT_ONCE = 1024  # bounds memory at _USERS_AT_ONCE × N scores


def draw_log(
    attributes: Attributes,
    popularity: Floats,
    num_users: int,
    events_per_user: int,
    *,
    seed: int,
) -> tuple[pl.DataFrame, Wishes]:
    """Draws who met which item when.

    Each event is drawn from softmax(affinity + log popularity) over the items not yet met; after
    it the wishes may drift.

    Args:
        attributes: Of N items.
        popularity: (N,), log popularity.
        num_users: U.
        events_per_user: Mean number of events; a user has at most N // 4.
        seed: Of the log.

    Returns:
        A log (user_index, item_index, position, timestamp in Unix seconds) in order of time, and
        the wishes each user held at the last event.
    """
    parts, wishes = [], []
    for start in range(0, num_users, _USERS_AT_ONCE):
        rng = np.random.default_rng([seed, _LOG_STREAM, start])
        count = min(_USERS_AT_ONCE, num_users - start)
        part, last = _draw_histories(rng, attributes, popularity, count, events_per_user)
        parts.append(part.with_columns(pl.col("user_index") + start))
        wishes.append(last)
    log = pl.concat(parts).sort("timestamp", "user_index", "position")
    names = Wishes.__dataclass_fields__
    return log, Wishes(
        **{name: np.concatenate([getattr(w, name) for w in wishes]) for name in names}
    )


def _draw_histories(
    rng: np.random.Generator,
    attributes: Attributes,
    popularity: Floats,
    num_users: int,
    events_per_user: int,
) -> tuple[pl.DataFrame, Wishes]:
    num_items = len(attributes)
    lengths = _draw_lengths(rng, num_users, events_per_user, num_items // 4)
    wishes = draw_wishes(rng, num_users)
    clock = _START + rng.integers(2 * _YEAR_S, size=num_users)
    last_shape = np.full(num_users, -1)
    met = np.zeros((num_users, num_items), dtype=bool)
    events = []
    for position in range(int(lengths.max())):
        rows = np.flatnonzero(lengths > position)
        # the largest of score + Gumbel noise is a draw from the softmax of the scores
        scores = affinity(attributes, wishes.rows(rows), last_shape[rows]) + popularity
        scores += rng.gumbel(size=scores.shape)
        scores[met[rows]] = -np.inf
        chosen = scores.argmax(axis=1)
        met[rows, chosen] = True
        last_shape[rows] = attributes.shape[chosen]
        clock[rows] += _draw_gaps(rng, len(rows))
        events.append(
            pl.DataFrame(
                {
                    "user_index": rows,
                    "item_index": chosen,
                    "position": np.full(len(rows), position),
                    "timestamp": clock[rows],
                }
            )
        )
        still = rows[lengths[rows] > position + 1]
        for codes in (wishes.gesture, wishes.topic):
            codes[still] = (codes[still] + (rng.uniform(size=len(still)) < DRIFT_PROBABILITY)) % 4
    return pl.concat(events), wishes


def _draw_lengths(rng: np.random.Generator, num_users: int, mean: int, most: int) -> Ints:
    """Log-normal numbers of events with a given mean, at least 2."""
    spread = 0.5
    lengths = np.exp(rng.normal(np.log(mean) - spread**2 / 2, spread, num_users))
    return np.clip(np.round(lengths), 2, most).astype(np.int64)


def _draw_gaps(rng: np.random.Generator, count: int) -> Ints:
    """Seconds between a user's events: a minute and more, eight hours in the middle."""
    return np.exp(rng.normal(np.log(8 * 3600), 1.5, count)).astype(np.int64) + 60
