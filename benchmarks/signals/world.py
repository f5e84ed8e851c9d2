"""A made log in which one signal says what a user wants next, or says nothing.

Every user likes two groups of items, a and b, in equal parts. What decides between them is

    events    what was bought is of a, what was viewed of b; what is bought next is asked for
    values    what has five stars is of a, what has one of b; the next five stars are asked for
    times     mornings are for a, evenings for b
    context   the phone is for a, the desktop for b
    users     the region names a; half of a short history is of any group
    shown     in each group one half is shown to everybody and seldom taken, the other half is
              seldom shown and nearly always taken; the last two events choose from a fair window

Where the signal carries nothing its column is drawn without regard to the group. Without the signal
a model knows two groups and not which of them comes next (of `users`: a, from few events; of
`shown`: what was met, in which the two halves look alike).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

SIGNALS = ("events", "values", "times", "context", "users", "shown")
NUM_GROUPS, GROUP_SIZE = 8, 12
EVENTS_PER_USER, EVENTS_OF_SHORT = 12, 4
START, DAY_S, HOUR_S = 1_700_000_000 // 86_400 * 86_400, 86_400, 3_600
MORNING_H, EVENING_H = 7, 18  # and the three hours after
PUSH = 5.0  # times that an item of the half that is pushed is shown for once of the other
TAKEN, PUSHED_TAKEN = 0.9, 0.18  # of a hundred times shown; both are met about equally often
MOST_SHOWN = 6  # before the one that is taken


def write_world(folder: Path, signal: str, *, carries: bool, num_users: int, seed: int) -> Path:
    """Writes the tables and the catalogue file of a world.

    Args:
        folder: new.
        signal: one of SIGNALS.
        carries: whether it says what is wanted next.
        num_users: U.
        seed: of everything drawn.

    Returns:
        Path of catalogue.yaml; its --source is the folder.
    """
    folder.mkdir(parents=True)
    if signal == "shown":
        return _write_shown(folder, carries=carries, num_users=num_users, seed=seed)
    random = np.random.default_rng(seed)
    length = EVENTS_OF_SHORT if signal == "users" else EVENTS_PER_USER
    shape = (num_users, length)
    first = random.integers(NUM_GROUPS, size=num_users)
    second = (first + random.integers(1, NUM_GROUPS, size=num_users)) % NUM_GROUPS
    is_first = random.random(shape) < 0.5
    other = random.integers(NUM_GROUPS, size=shape) if signal == "users" else second[:, None]
    group = np.where(is_first, first[:, None], other)
    if signal == "users":  # what is asked for last is what the region says
        group[:, -2:] = first[:, None]
    said = is_first if carries else random.random(shape) < 0.5
    item = group * GROUP_SIZE + random.integers(GROUP_SIZE, size=shape)
    hour = np.where(said, MORNING_H, EVENING_H) + random.uniform(0, 4, shape)
    time = START + np.arange(length) * DAY_S + hour * HOUR_S
    log = {
        "user": np.repeat(np.arange(num_users), length),
        "item": item.ravel(),
        "at": time.astype(np.int64).ravel(),
    }
    columns: dict[str, dict[str, Any]] = {
        "events": {"action": np.where(said, "buy", "view").ravel()},
        "values": {"stars": np.where(said, 5, 1).ravel()},
        "context": {"device": np.where(said, "phone", "desktop").ravel()},
    }
    region = first if carries else random.integers(NUM_GROUPS, size=num_users)
    regions = [f"region {number}" for number in region]
    pl.DataFrame({"user": np.arange(num_users), "region": regions}).write_csv(folder / "users.csv")
    return _write_tables(folder, signal, pl.DataFrame({**log, **columns.get(signal, {})}))


def _write_shown(folder: Path, *, carries: bool, num_users: int, seed: int) -> Path:
    """The world of what was shown: of each window, what was passed over and what was taken."""
    random = np.random.default_rng(seed)
    shape = (num_users, EVENTS_PER_USER, MOST_SHOWN + 1)
    groups = random.permuted(np.tile(np.arange(NUM_GROUPS), (num_users, 1)), axis=1)[:, :2]
    group = groups[np.arange(num_users)[:, None, None], random.integers(2, size=shape)]
    half = GROUP_SIZE // 2
    fair = (not carries) | (np.arange(EVENTS_PER_USER) >= EVENTS_PER_USER - 2)[:, None]
    pushed = random.random(shape) < np.where(fair, 0.5, PUSH / (1 + PUSH))
    item = group * GROUP_SIZE + half * pushed + random.integers(half, size=shape)
    chance = np.where(pushed, PUSHED_TAKEN, TAKEN) if carries else np.full(shape, 0.4)
    taken = random.random(shape) < chance
    taken[..., -1] = True  # in the end something is
    first = taken.argmax(-1)  # (U, L): what comes behind it was never shown
    place = np.arange(MOST_SHOWN + 1)
    user, step, seen = np.nonzero(place <= first[..., None])
    log = pl.DataFrame(
        {
            "user": user,
            "item": item[user, step, seen],
            "at": START + step * DAY_S + seen,
            "action": np.where(seen == first[user, step], "take", "show"),
        }
    )
    return _write_tables(folder, "shown", log)


def _write_tables(folder: Path, signal: str, log: pl.DataFrame) -> Path:
    num_items = NUM_GROUPS * GROUP_SIZE
    titles = [f"item {number}" for number in range(num_items)]
    pl.DataFrame({"item": np.arange(num_items), "title": titles}).write_csv(folder / "items.csv")
    log.write_csv(folder / "log.csv")
    path = folder / "catalogue.yaml"
    path.write_text(yaml.safe_dump(_catalogue(signal), sort_keys=False))
    return path


def _catalogue(signal: str) -> dict[str, Any]:
    interactions: dict[str, Any] = {"table": "log.csv", "user": "user", "item": "item"}
    interactions |= {"time": "at"}
    if signal == "events":
        interactions |= {"event": "action", "targets": {"events": ["buy"]}}
    if signal == "values":
        interactions |= {"value": "stars", "targets": {"min_value": 4}}
    if signal == "context":
        interactions |= {"context": ["device"]}
    if signal == "shown":
        interactions |= {"event": "action", "shown": ["show"]}
    document = {
        "name": f"signals-{signal}",
        "kind": "shop",
        "items": {"table": "items.csv", "id": "item", "text": ["title"]},
        "interactions": interactions,
        "split": {"protocol": "leave_one_out"},
    }
    if signal == "users":
        attributes = {"region": {"type": "category"}}
        document["users"] = {"table": "users.csv", "id": "user", "attributes": attributes}
    return document
