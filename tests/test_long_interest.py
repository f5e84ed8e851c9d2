"""One user state holds an old taste and the session of today: `data.max_history` 200 beside 10.

A user's history goes to and fro between his taste, a group of items that stays his, and sessions,
each in a group of its own. A session lasts ten events at least, so that the last ten events say
nothing of the taste: whoever is back home with the next event is found by the older ones alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_prep.prepare import prepare
from fusion.history import HistoryEncoder
from mmrec.config import parse_config
from mmrec.evaluation.metrics import case_metrics
from mmrec.evaluation.protocol import load_cases
from mmrec.loaded import load_run
from mmrec.training.train import train
from mmrec.training.validate import case_vectors, rank

pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_GROUPS, GROUP_SIZE, NUM_USERS = 16, 8, 240
LONG, SHORT = 200, 10
SESSION = range(SHORT, 15)
"""Events of a session before it may end."""


def draw_history(random: np.random.Generator, *, ends_at_home: bool) -> list[int]:
    """Items of about 200 events: the last ten but one in one session, the last of either kind."""
    home = int(random.integers(NUM_GROUPS))
    groups: list[int] = []
    while len(groups) < LONG - SESSION[-1]:
        other = int((home + random.integers(1, NUM_GROUPS)) % NUM_GROUPS)
        groups += [home] * int(random.integers(5, 25)) + [other] * int(random.choice(SESSION))
    # both kinds end alike but for the last: the one before it is looked at on validation
    groups = groups[: LONG - SESSION[-1]]
    other = int((home + random.integers(1, NUM_GROUPS)) % NUM_GROUPS)
    groups += [home] * 3 + [other] * (SHORT + 1) + [home if ends_at_home else other]
    return [group * GROUP_SIZE + int(random.integers(GROUP_SIZE)) for group in groups]


def write_world(folder: Path) -> Path:
    """Users with an even number end at home, the others in the session."""
    folder.mkdir()
    random = np.random.default_rng(0)
    items = [{"id": f"i{n}", "title": f"thing {n}"} for n in range(NUM_GROUPS * GROUP_SIZE)]
    pl.DataFrame(items).write_csv(folder / "items.csv")
    log = [
        (f"u{user:03}", f"i{item}", position)
        for user in range(NUM_USERS)
        for position, item in enumerate(draw_history(random, ends_at_home=user % 2 == 0))
    ]
    pl.DataFrame(log, ["user", "item", "at"], orient="row").write_csv(folder / "log.csv")
    catalogue = {
        "name": "songs",
        "kind": "music",
        "repeats": "allow",
        "items": {"table": "items.csv", "id": "id", "text": ["title"]},
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "order": "at"},
        "split": {"protocol": "leave_one_out"},
    }
    (folder / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    return folder / "catalogue.yaml"


def hits(data: Path, run: Path, max_history: int) -> dict[str, float]:
    """HR of two groups' worth of items, by where the target lies."""
    settings: dict[str, Any] = {
        "data": {"max_history": max_history},
        "model": {
            "item": "id",
            "width": 32,
            "history": {"num_blocks": 1, "num_heads": 4, "dropout": 0.2},
        },
        "training": {
            "max_epochs": 25,
            "batch_size": 16 * LONG // max_history,  # as many events a step, and as many steps
            "warmup_steps": 20,
            "learning_rate": 0.005,
            "precision": "fp32",
            "evaluate_every": 25,
        },
    }
    train(parse_config({"name": "songs", **settings}), data, run)
    loaded = load_run(run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    found = case_metrics(rank(cases, users, items).rank, cases.targets.offsets, ks=(16,))["hr@16"]
    ids = pl.read_parquet(data / "users.parquet")["user_id"].to_list()
    at_home = np.array([int(ids[user][1:]) % 2 == 0 for user in cases.user_index])
    return {"long": float(found[at_home].mean()), "session": float(found[~at_home].mean())}


@pytest.mark.slow
def test_two_hundred_events_find_an_old_taste_and_lose_no_session(tmp_path: Path) -> None:
    prepare(write_world(tmp_path / "source"), tmp_path / "source", tmp_path / "data", num_workers=1)
    long = hits(tmp_path / "data", tmp_path / "long", LONG)
    short = hits(tmp_path / "data", tmp_path / "short", SHORT)
    # found: .525 beside .075, and all sessions in either case
    assert long["long"] > max(3 * short["long"], 0.35)
    assert long["session"] > max(short["session"] - 0.02, 0.95)


@pytest.mark.parametrize(("num_users", "most"), [(1, 1.5), (64, 25.0)], ids=["one", "many"])
def test_two_hundred_events_cost_a_bounded_multiple_of_ten(num_users: int, most: float) -> None:
    """In operations, which no clock of a busy machine blurs, at the width of the configurations.

    Of one user rows are filled up to 256 in either case, and attention alone is added. Of many,
    twenty times the events take twenty times the work, and attention grows with the square.
    """
    encoder = HistoryEncoder(128, max_length=LONG, num_blocks=2, num_heads=4, dropout=0.0).eval()
    work = {}
    for length in (SHORT, LONG):
        items = torch.randn(num_users * length, 128)
        offsets = torch.arange(num_users + 1) * length
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            encoder.query(items, offsets)
        work[length] = counter.get_total_flops()
    assert 1 < work[LONG] / work[SHORT] < most, work
