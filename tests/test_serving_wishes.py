"""What a request asks of its list, over HTTP and on the command line: price, language, less of X.

Users of a made shop like one genre each, and the model learns it; some things are met far more
often than others. Hard wishes are never broken, soft ones move what they name one way alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_tables import write_tables

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import parse_config
from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")
NUM_ITEMS, NUM_USERS, LENGTH, K = 80, 120, 12, 10
GENRES, LANGUAGES = ("horror", "comedy", "war", "music"), ("en", "zh", "de")
WORDS = {"en": "english", "zh": "中文", "de": "german"}
LIKED = 0.85  # of a user's events are of his genre
STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0)


def things() -> pl.DataFrame:
    """Items of every genre, language and price; of each thirteenth the price is not known."""
    numbers = range(NUM_ITEMS)
    return pl.DataFrame(
        {
            "id": [f"i{n}" for n in numbers],
            "title": [f"{WORDS[LANGUAGES[n // 4 % 3]]} thing {n}" for n in numbers],
            "price": [None if n % 13 == 0 else 1.0 + (n * 37) % NUM_ITEMS for n in numbers],
            "genre": [GENRES[n % 4] for n in numbers],
            "language": [LANGUAGES[n // 4 % 3] for n in numbers],
        }
    )


ROWS = {row["id"]: row for row in things().iter_rows(named=True)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wishes")
    random = np.random.default_rng(0)
    often = 1 / (1 + np.arange(NUM_ITEMS) // 4)  # the first of each genre are met most
    log = []
    for user in range(NUM_USERS):
        genre = np.arange(NUM_ITEMS) % 4 == user % 4
        chance = often * np.where(genre, LIKED / often[genre].sum(), 0.15 / often[~genre].sum())
        items = random.choice(NUM_ITEMS, LENGTH, p=chance / chance.sum())
        items[0] = user % NUM_ITEMS  # so that each is met
        log += [(f"u{user}", f"i{item}", step) for step, item in enumerate(items)]
    catalogue = write_tables(
        folder / "source",
        items=things(),
        log=pl.DataFrame(log, ["user", "item", "at"], orient="row"),
        catalogue={
            "name": "wishes",
            "kind": "shop",
            "repeats": "allow",
            "items": {
                "attributes": {
                    "price": {"type": "number"},
                    "genre": {"type": "category"},
                    "language": {"type": "category"},
                }
            },
            "interactions": {"order": "at"},
            "split": {"protocol": "none"},
        },
    )
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    config = parse_config(
        {
            "data": {"max_history": LENGTH},
            "model": {"item": "id", "width": 16, "history": {"num_blocks": 1, "num_heads": 2}},
            "training": {
                "max_epochs": 16,
                "batch_size": 16,
                "learning_rate": 0.01,
                "warmup_steps": 5,
                "precision": "fp32",
            },
        }
    )
    train(config, folder / "data", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def client(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'service.sqlite'}"
    service = Service(ServiceSettings(path=run, database=url))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client


def asked(client: TestClient, user: int, k: int = K, **wishes: Any) -> list[dict[str, Any]]:
    """Rows of the table behind the items of a list."""
    body = {"user_id": f"u{user}", "k": k, "wishes": wishes}
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return [ROWS[each["item_id"]] for each in answer.json()["items"]]


def holds(row: dict[str, Any], condition: dict[str, Any]) -> bool:
    """A condition, read from the table; what is not known fulfils none that asks for a value."""
    value = row[condition["field"]]
    if "none_of" in condition:
        return value not in condition["none_of"]
    if "any_of" in condition:
        return value in condition["any_of"]
    if value is None:
        return False
    low, high = condition.get("minimum"), condition.get("maximum")
    return (low is None or value >= low) and (high is None or value <= high)


PRICES = st.floats(-5, NUM_ITEMS + 5, allow_nan=False)
CONDITIONS = st.one_of(
    st.tuples(PRICES, PRICES).map(
        lambda ends: {"field": "price", "minimum": min(ends), "maximum": max(ends)}
    ),
    PRICES.map(lambda price: {"field": "price", "maximum": price}),
    st.sets(st.sampled_from(LANGUAGES), min_size=1).map(
        lambda values: {"field": "language", "any_of": sorted(values)}
    ),
    st.sets(st.sampled_from(GENRES), min_size=1).map(
        lambda values: {"field": "genre", "none_of": sorted(values)}
    ),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    where=st.lists(CONDITIONS, max_size=3),
    without=st.lists(st.sampled_from(sorted(ROWS)), max_size=20),
    novelty=st.floats(0, 100),
    less=st.sampled_from(GENRES),
    diversity=st.sampled_from([0.0, 0.5]),
    k=st.integers(1, 30),
    user=st.integers(0, NUM_USERS - 1),
)
def test_hard_wishes_are_never_broken_over_http(
    client: TestClient,
    where: list[dict[str, Any]],
    without: list[str],
    novelty: float,
    less: str,
    diversity: float,
    k: int,
    user: int,
) -> None:
    prefer = [{"field": "genre", "values": [less], "less": True, "strength": 100.0}]
    found = asked(
        client, user, k,
        where=where, without=without, novelty=novelty, prefer=prefer, diversity=diversity,
    )  # fmt: skip
    allowed = [
        row for name, row in ROWS.items()
        if name not in without and all(holds(row, each) for each in where)
    ]  # fmt: skip
    assert all(row in allowed for row in found)
    assert len(found) == len({row["id"] for row in found}) == min(k, len(allowed))


SOFT: dict[str, tuple[Callable[[float], dict[str, Any]], Callable[[dict[str, Any]], float]]] = {
    "less-horror": (
        lambda s: {"prefer": [{"field": "genre", "values": ["horror"], "less": True,
                               "strength": s}]},
        lambda row: row["genre"] == "horror",
    ),
    "cheaper": (
        lambda s: {"prefer": [{"field": "price", "less": True, "strength": s}]},
        lambda row: row["price"],
    ),
    "rather-german": (
        lambda s: {"prefer": [{"field": "language", "values": ["de"], "strength": s}]},
        lambda row: row["language"] != "de",
    ),
    "novelty": (lambda s: {"novelty": s}, lambda row: row["events"]),
}  # fmt: skip


@pytest.mark.parametrize(("wish", "measured"), SOFT.values(), ids=SOFT)
def test_a_stronger_wish_moves_one_way_over_http(
    wish: Callable[[float], dict[str, Any]],
    measured: Callable[[dict[str, Any]], float],
    client: TestClient,
    run: Path,
) -> None:
    """For each of thirty users, and by much from no wish to the strongest over all of them."""
    known = {"where": [{"field": "price", "minimum": 0}]}  # a mean of known prices
    log = Counter(pl.read_csv(run.parent / "source" / "log.csv")["item"].to_list())
    events = {item_id: float(np.log1p(log[item_id])) for item_id in ROWS}
    totals = np.zeros((NUM_USERS // 4, len(STRENGTHS)))
    for user in range(len(totals)):
        for place, strength in enumerate(STRENGTHS):
            wishes = known | (wish(strength) if strength else {})
            totals[user, place] = sum(
                measured({**row, "events": events[row["id"]]})
                for row in asked(client, user, **wishes)
            )
    assert (np.diff(totals, axis=1) <= 1e-6).all()
    assert totals[:, -1].mean() < 0.7 * totals[:, 0].mean()


def test_what_a_user_says_beats_what_was_learnt_over_http(client: TestClient) -> None:
    """A lover of horror is shown horror, and none once he asks for less of it, loudly."""
    less = {"field": "genre", "values": ["horror"], "less": True, "strength": 10.0}
    learnt = []
    for user in range(0, NUM_USERS, 4):
        learnt.append(sum(row["genre"] == "horror" for row in asked(client, user)))
        assert not any(row["genre"] == "horror" for row in asked(client, user, prefer=[less]))
    assert np.mean(learnt) > 0.6 * K  # by chance a quarter


def test_the_command_line_asks_for_the_same(
    run: Path, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--where", "price>=5", "--where", "price<=60", "--where", "language=zh|de"]
    wanted += ["--prefer", "genre!=horror*2", "--novelty", "0.7"]
    assert main(["recommend", str(run), "--user", "u0", "-k", "10", *wanted, "--json"]) == 0
    printed = [each["item_id"] for each in json.loads(capsys.readouterr().out)["items"]]
    where = [{"field": "price", "minimum": 5, "maximum": 60},
             {"field": "language", "any_of": ["zh", "de"]}]  # fmt: skip
    prefer = [{"field": "genre", "values": ["horror"], "less": True, "strength": 2.0}]
    found = asked(client, 0, where=where, prefer=prefer, novelty=0.7)
    assert [row["id"] for row in found] == printed and len(printed) == K
    assert main(["recommend", str(run), "--user", "u0", "--novelty", "-1"]) == 2
    assert "novelty" in capsys.readouterr().err
    answer = client.post("/v1/recommend", json={"user_id": "u0", "wishes": {"novelty": -1}})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "wishes.novelty"


@pytest.mark.parametrize(("query", "language"), [("german", "de"), ("中文", "zh")])
def test_taste_orders_what_a_query_asks_for_over_http(
    query: str, language: str, client: TestClient, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lovers of horror and of comedy ask the same: all they get is of it, each his own first."""

    def found(route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = client.post(f"/v1/{route}", json={"k": K, **body})
        assert answer.status_code == 200, answer.text
        return [ROWS[each["item_id"]] for each in answer.json()["items"]]

    alone = found("search", {"text": query})
    for horror, comedy in zip(range(0, 40, 4), range(1, 41, 4), strict=True):
        for route, field in (("search", "text"), ("recommend", "query")):
            lists = {}
            for genre, user in (("horror", horror), ("comedy", comedy)):
                body = {field: query, "user_id": f"u{user}"}
                lists[genre] = found(route, {**body, "mix": 0.5})
                assert sum(row["language"] == language for row in lists[genre]) >= 0.8 * K
                assert found(route, {**body, "mix": 0.0}) == alone
                assert found(route, {**body, "mix": 1.0}) == asked(client, user)
            assert lists["horror"] != lists["comedy"]
            for genre, other in (("horror", "comedy"), ("comedy", "horror")):
                own, theirs = (
                    sum(row["genre"] == genre for row in lists[each][:5]) for each in (genre, other)
                )
                assert own > theirs
    words = ["search", str(run), query, "--user", "u0", "--mix", "0.5", "-k", str(K), "--json"]
    assert main(words) == 0
    printed = [each["item_id"] for each in json.loads(capsys.readouterr().out)["items"]]
    body = {"text": query, "user_id": "u0", "mix": 0.5}
    assert printed == [row["id"] for row in found("search", body)]
