"""The feedback loop of the service: what lists showed is logged, and becomes training data."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from fastapi.testclient import TestClient
from live_servers import PostgreSQL
from tiny_run import CATALOGUE

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.cli import main
from mmrec.errors import ConfigError
from mmrec.retrieval.lists import Recommendation
from mmrec.serving.app import build_app
from mmrec.serving.database import Database, Event
from mmrec.serving.explore import explore
from mmrec.serving.faults import Fault
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.serving.shown import ShownList, ShownLog

pytest_plugins = ["tiny_run", "live_servers"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'service.sqlite'}"


@contextmanager
def answering(path: Path, url: str, **settings: Any) -> Iterator[tuple[TestClient, Service]]:
    service = Service(ServiceSettings(path=path, database=url, **settings))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client, service


def logged(url: str) -> list[ShownList]:
    database = Database(url)
    try:
        return list(ShownLog(database.engine).all())
    finally:
        database.close()


def recommended(client: TestClient, **asked: Any) -> dict[str, Any]:
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def ids(document: dict[str, Any]) -> list[str]:
    return [each["item_id"] for each in document["items"]]


@pytest.mark.parametrize("how", ["sure", "later"])
def test_what_users_are_shown_is_logged(tiny_run: Path, url: str, how: str) -> None:
    with answering(tiny_run, url, log_lists=how) as (client, service):
        before = time.time()
        shown = [recommended(client, user_id=f"u{n}", k=3) for n in (0, 1)]
        assert recommended(client, history=["i1"], k=3)["request_id"] is None
        if how == "sure":  # on disk before the answer is there
            assert len(logged(url)) == 2
        live = service.live
    found = logged(url)
    assert live is not None and [each.user_id for each in found] == ["u0", "u1"]
    for document, each in zip(shown, found, strict=True):
        assert each.request_id == document["request_id"] and each.strategy == document["basis"]
        assert list(each.item_ids) == ids(document) and list(each.propensities) == [1.0] * 3
        assert (each.model, each.version) == (live.model_hash, live.version)
        assert before <= each.time <= time.time()


def test_it_can_be_switched_off(tiny_run: Path, url: str) -> None:
    with answering(tiny_run, url, log_lists="off") as (client, _):
        assert recommended(client, user_id="u0")["request_id"] is None
    assert logged(url) == []
    with pytest.raises(ConfigError, match=r"--explore is 0.1 and --log-lists is off"):
        ServiceSettings(path=tiny_run, database=url, explore=0.1, log_lists="off")


def test_a_log_that_fails_costs_no_list(
    tiny_run: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(tiny_run, url) as (client, service):
        expected = ids(recommended(client, user_id="u0"))

        def fails(lists: list[ShownList]) -> None:
            raise Fault(503, "disk", "the disk is full")

        monkeypatch.setattr(service.showing.log, "add", fails)
        document = recommended(client, user_id="u0")
        assert ids(document) == expected and document["request_id"] is None
        assert "a list shown to a user is not logged: 503: the disk is full" in caplog.text
    assert len(logged(url)) == 1


def test_old_lists_are_forgotten(tiny_run: Path, url: str) -> None:
    now, day = time.time(), 86_400.0
    database = Database(url)
    log = ShownLog(database.engine)
    log.prepare()
    log.prepare()
    lists = [
        ShownList(str(age), "u", now - age * day, None, None, "popularity", ["i1"], [1.0])
        for age in (3, 1, 0)
    ]
    log.add(lists)
    assert list(log.all()) == lists
    database.close()
    with answering(tiny_run, url, log_lists_days=2) as (_, service):
        assert len(logged(url)) == 3
        end = time.monotonic() + 10  # the watch looks once a second
        while len(logged(url)) == 3:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert logged(url) == lists[1:]


def test_an_older_database_gets_the_column_of_events(tmp_path: Path, url: str) -> None:
    database = Database(url)
    database.prepare()
    database.add_events([Event("e0", "u", "i1")])
    database.close()
    with sqlite3.connect(tmp_path / "service.sqlite") as connection:
        connection.execute("ALTER TABLE events DROP COLUMN request_id")
    connection.close()
    database = Database(url)
    for _ in range(2):
        database.prepare()
    database.add_events([Event("e1", "u", "i2", request_id="r")])
    assert [each.request_id for each in database.all_events()] == [None, "r"]
    database.close()


def test_the_log_is_kept_by_postgresql(postgresql_url: str, postgresql: PostgreSQL) -> None:
    database = Database(postgresql_url)
    log = ShownLog(database.engine)
    log.prepare()
    lists = [
        ShownList(str(n), "u", float(n), "m", "v", "history", ["i1", "i2"], [0.9, 0.005])
        for n in range(3)
    ]
    log.add(lists)
    assert list(log.all()) == lists
    assert log.forget(2.0) == 2 and list(log.all()) == lists[2:]
    database.close()


def ranked(num: int) -> list[Recommendation]:
    return [Recommendation(n + 1, f"i{n}", 1.0 / (n + 1), None, "history") for n in range(num)]


@pytest.mark.parametrize(("k", "behind"), [(3, 5), (4, 2)], ids=["many-behind", "few-behind"])
def test_propensities_are_the_rates_of_what_is_drawn(k: int, behind: int) -> None:
    random, draws, epsilon = np.random.default_rng(0), 20_000, 0.3
    seen: Counter[tuple[int, str]] = Counter()
    told: dict[tuple[int, str], float] = {}
    for _ in range(draws):
        found, propensities = explore(ranked(k + behind), k, epsilon, random)
        assert [each.rank for each in found] == list(range(1, k + 1))
        assert len({each.item_id for each in found}) == k
        for each, propensity in zip(found, propensities, strict=True):
            seen[each.rank, each.item_id] += 1
            assert told.setdefault((each.rank, each.item_id), propensity) == propensity
    assert len(told) == k * (1 + behind)
    for place in range(1, k + 1):  # whatever stands at a place, its chances add up to 1
        assert sum(p for (rank, _), p in told.items() if rank == place) == pytest.approx(1)
    for key, propensity in told.items():
        deviation = (propensity * (1 - propensity) / draws) ** 0.5
        assert abs(seen[key] / draws - propensity) < 5 * deviation


def test_nothing_is_explored_where_nothing_is_behind() -> None:
    random = np.random.default_rng(0)
    assert explore(ranked(3), 3, 1.0, random) == (ranked(3), [1.0] * 3)
    assert explore([], 3, 1.0, random) == ([], [])
    assert explore(ranked(9), 3, 0.0, random) == (ranked(3), [1.0] * 3)


def test_explored_lists_are_logged_with_their_propensities(tiny_run: Path, url: str) -> None:
    with answering(tiny_run, url, explore=1.0, explore_next=4) as (client, _):
        best = ids(recommended(client, history=["i1"], k=2))
        whole = recommended(client, user_id="u0", k=2)
        plain = recommended(client, user_id="u0", k=2, wishes={"diversity": 0.5})
    assert len(best) == 2
    first, second = logged(url)
    assert list(first.item_ids) == ids(whole) and list(first.propensities) == [0.25, 0.25]
    # a list that is balanced as a whole is left as it is
    assert list(second.item_ids) == ids(plain) and list(second.propensities) == [1.0, 1.0]


@pytest.fixture
def told(tiny_run: Path, tiny_source: Path, url: str) -> str:
    """A database: u0 is shown three items and takes the second; u9 is new."""
    with answering(tiny_run, url) as (client, _):
        for user_id, kept in (("u0", False), ("u9", True)):
            shown = recommended(client, user_id=user_id, k=3, keep=kept)
            assert not kept or shown["list_id"] == shown["request_id"]
            event = {
                "user_id": user_id, "item_id": ids(shown)[1], "event": "click",
                "request_id": shown["request_id"],
            }  # fmt: skip
            assert client.post("/v1/events", json={"events": [event]}).status_code == 200
        long = {"user_id": "u", "item_id": "i1", "request_id": "r" * 65}
        assert client.post("/v1/events", json={"events": [long]}).status_code == 422
    return url


def catalogue_file(folder: Path, **interactions: Any) -> Path:
    own = {**CATALOGUE["interactions"], "order": "at", **interactions}
    document = {**CATALOGUE, "interactions": own}
    document["split"] = {"protocol": "none"}
    path = folder / "catalogue.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_log_has_places_beside_reactions(told: str, tmp_path: Path) -> None:
    out = tmp_path / "log.csv"
    assert main(["events", told, "--out", str(out), "--lists"]) == 0
    table = pl.read_csv(out)
    assert table["event"].to_list() == [*["shown"] * 3, "click"] * 2  # kept as well, written once
    assert table["position"].to_list() == [1, 2, 3, None] * 2
    assert table["propensity"].to_list() == [1.0, 1.0, 1.0, None] * 2
    assert table["order"].is_sorted() and table["order"].n_unique() == 8
    for _, own in table.group_by("user_id"):
        assert own["request_id"].n_unique() == 1 and own["request_id"].null_count() == 0
    assert main(["events", told, "--out", str(out)]) == 0
    assert pl.read_csv(out)["event"].to_list() == ["click", *["shown"] * 3, "click"]


def test_what_was_shown_and_not_met_is_an_example_of_no(
    told: str, tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out = catalogue_file(tmp_path), tiny_source / "feedback.csv"
    command = ["events", told, "--out", str(out), "--lists", "--catalogue", str(plain)]
    assert main(command) == 2
    assert "has no place for them: give it interactions.event" in capsys.readouterr().err
    catalogue = catalogue_file(tmp_path, table="feedback.csv", event="event", shown=["shown"])
    command[-1] = str(catalogue)
    try:
        assert main(command) == 0
        columns = set(pl.read_csv(out).columns)
        assert columns == {"user", "item", "at", "event", "position", "propensity", "request_id"}
        prepare(catalogue, tiny_source, tmp_path / "data", num_workers=1)
    finally:
        out.unlink()
    histories = PreparedData.open(tmp_path / "data").split().full
    assert len(histories) == 2
    for row in range(2):
        history = histories.read(row)
        assert len(history.item_index) == 1
        assert history.shown_items.tolist().count(history.item_index[0]) == 1
        assert history.shown_before.tolist() == [0, 0, 0] and len(history.shown_items) == 3
