"""What is known of a request and of events: how it is encoded, and that it decides."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from told_catalogue import MONDAY, told_config

from data_prep.prepare import prepare
from encoders.attributes import FieldSpec
from mmrec.config import parse_config
from mmrec.data.signals import SignalReader, SignalSpec
from mmrec.data.told import a_request
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytest_plugins = ["told_catalogue"]
pytestmark = pytest.mark.usefixtures("restored_torch")

NUM_ITEMS, NUM_USERS, HOUR = 20, 80, 3_600
PLACES = SignalSpec(
    gap_knots=(0.0, 10.0),
    context=(
        FieldSpec("place", "category", values=("北京", "上海")),
        FieldSpec("device", "category", values=("PC", "phone")),
    ),
)


def columns_of_request(when: str, place: str | None, device: str | None) -> list[float]:
    """The columns of a request, each with its weight."""
    time = datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()
    facts = SignalReader(PLACES).requests(
        a_request(time=time, context={"place": place, "device": device})
    )
    row = np.zeros(PLACES.num_request_columns)
    np.add.at(row, facts.columns[0].numpy(), facts.weights[0].numpy())
    return [float(each) for each in row]


def test_a_request_has_time_place_and_device() -> None:
    row = columns_of_request("2023-08-05", "北京", "PC")
    assert row[:3] == [0, 0, 1]  # no event before it
    saturday = 2 * np.pi * 5 / 7
    clock = [0, 1, 0, 1, np.sin(saturday), np.cos(saturday), 0]  # midnight, and the time is known
    assert row[3:10] == pytest.approx(clock, abs=1e-6)
    assert row[10:14] == [1, 0, 0, 0] and row[14:] == [1, 0, 0, 0]
    assert columns_of_request("2023-08-05", "Paris", "watch")[10:] == [0, 0, 1, 0, 0, 0, 1, 0]
    assert columns_of_request("2023-08-05", None, None)[10:] == [0, 0, 0, 1, 0, 0, 0, 1]


def test_another_order_of_event_types_is_another_user(told_shop: Path, tmp_path: Path) -> None:
    train(told_config(learning_rate=0.2), told_shop, tmp_path / "run")
    recommender = Recommender.load(tmp_path / "run")
    items, times = ("i1", "i3", "i5"), (MONDAY, MONDAY + 2 * 86_400, MONDAY + 4 * 86_400)
    given, swapped, earlier = (
        [(item, kind, float(at)) for item, kind, at in zip(items, kinds, when, strict=True)]
        for kinds, when in (
            (("view", "buy", "view"), times),
            (("buy", "view", "view"), times),
            (("view", "buy", "view"), (MONDAY, MONDAY + 86_400, MONDAY + 4 * 86_400)),
        )
    )
    one, other, again, young = recommender.embed_users([given, swapped, given, earlier])
    assert np.array_equal(one, again)
    assert np.abs(one - other).max() > 1e-4 and np.abs(one - young).max() > 1e-4


def test_the_list_of_a_user_follows_the_hour(tmp_path: Path) -> None:
    """Everybody takes even items in the morning and odd ones in the evening."""
    source = tmp_path / "source"
    source.mkdir()
    items = [{"id": f"i{number}", "title": f"thing {number}"} for number in range(NUM_ITEMS)]
    pl.DataFrame(items).write_csv(source / "items.csv")
    random = np.random.default_rng(0)
    log = []
    for user in range(NUM_USERS):
        for day in range(8):
            evening = int(random.integers(2))
            at = MONDAY + 24 * HOUR * day + (20 if evening else 8) * HOUR
            log.append((f"u{user}", f"i{2 * int(random.integers(10)) + evening}", at))
    pl.DataFrame(log, ["user", "item", "at"], orient="row").write_csv(source / "log.csv")
    catalogue = {
        "name": "hours",
        "kind": "music",
        "repeats": "allow",
        "items": {"table": "items.csv", "id": "id", "text": ["title"]},
        "interactions": {"table": "log.csv", "user": "user", "item": "item", "time": "at"},
    }
    (source / "catalogue.yaml").write_text(yaml.safe_dump(catalogue))
    prepare(source / "catalogue.yaml", source, tmp_path / "data", num_workers=1)
    settings = {
        "data": {"max_history": 8},
        "model": {
            "item": "id",
            "width": 16,
            "history": {"num_blocks": 1, "num_heads": 2},
            "signals": {"times": True},
        },
        "training": {
            "max_epochs": 20,
            "batch_size": 16,
            "warmup_steps": 5,
            "learning_rate": 0.02,
            "precision": "fp32",
            "evaluate_every": 20,
        },
    }
    train(parse_config(settings), tmp_path / "data", tmp_path / "run")
    recommender = Recommender.load(tmp_path / "run")
    day = MONDAY + 20 * 24 * HOUR
    for hour, half in ((8, 0), (20, 1)):
        for user in ("u0", "u5", "u33"):
            found = recommender.recommend(user, k=10, time=day + hour * HOUR)
            suited = sum(int(each.item_id[1:]) % 2 == half for each in found)
            assert suited >= 9, (hour, user)
