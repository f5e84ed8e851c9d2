"""A run's half-life of items: in all lists or where a query asks for the new, by each way to ask.

Phones come in twins, alike in all but the day they came out, and the older stands first in the
table. So the newer one comes first where age counts, and nowhere else.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from made_tables import things, write_tables

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import Config, EvaluationConfig, parse_config
from mmrec.errors import ConfigError
from mmrec.recommender import Recommender, Wishes
from mmrec.retrieval.freshness import asks_for_new
from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.training.train import train

pytestmark = pytest.mark.usefixtures("restored_torch")
DAY, NOW, APART = 86_400, 1_700_000_000, 300
HALF_LIFE = 24.0 * APART  # so that the older of two phones has lost half of its odds
NAMES = ("红色手机", "blue phone", "folding phone", "小手机")
OTHERS = ("a lamp", "a chair", "一条船", "a kettle", "旧书", "a violin")
OLD, NEW = [f"i{2 * row}" for row in range(4)], [f"i{2 * row + 1}" for row in range(4)]
ALL = 2 * len(NAMES) + len(OTHERS)
Ask = Callable[..., list[dict[str, Any]]]


def write_phones(folder: Path) -> Path:
    """Phones in twins and other things of one day, each met twice in a log that says nothing."""
    titles = [name for name in NAMES for _ in range(2)] + list(OTHERS)
    came = [NOW - DAY * (1 + APART * (row % 2 == 0)) for row in range(2 * len(NAMES))]
    items = pl.DataFrame(
        {
            "id": [f"i{row}" for row in range(ALL)],
            "title": titles,
            "came": came + [NOW - DAY] * len(OTHERS),
        }
    )
    log = [
        (f"u{user}", f"i{(user + step) % ALL}", step) for user in range(ALL) for step in range(6)
    ]
    catalogue = write_tables(
        folder / "source",
        items=items,
        log=pl.DataFrame(log, ["user", "item", "at"], orient="row"),
        catalogue={
            "name": "phones",
            "kind": "shop",
            "repeats": "allow",
            "items": {"available": {"from": "came"}},
            "interactions": {"order": "at"},
            "split": {"protocol": "none"},
        },
    )
    prepare(catalogue, folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def a_config(**evaluation: Any) -> Config:
    text = {"width": 16, "num_layers": 1, "num_heads": 2, "vocabulary": "characters"}
    return parse_config(
        {
            "data": {"max_history": 8},
            "encoders": {"text": {"num_tokens": 4, "options": text}},
            "model": {
                "item": "content",  # twins have one vector: nothing but age tells them apart
                "popularity": False,
                "width": 16,
                "fusion": {"num_latents": 2, "num_heads": 2},
                "history": {"num_blocks": 1, "num_heads": 2},
            },
            "training": {"max_steps": 4, "batch_size": 8, "warmup_steps": 1, "precision": "fp32"},
            "evaluation": evaluation,
        }
    )


@pytest.fixture(scope="module")
def phones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phones(tmp_path_factory.mktemp("phones"))


@pytest.fixture(scope="module", params=["always", "asked"])
def when(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(when: str, phones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("fresh") / "run"
    train(a_config(half_life_hours=HALF_LIFE, half_life_when=when), phones, run)
    return run


@pytest.fixture(scope="module", params=["python", "bundle", "command", "http"])
def ask(request: pytest.FixtureRequest, run: Path) -> Any:
    """Asks for a list in one of the ways that there are."""
    if request.param in ("python", "bundle"):
        path = run
        if request.param == "bundle":
            out = run.parent / "export"
            assert main(["export", str(run), "--out", str(out), "--bundle"]) == 0
            path = out / "bundle"
        recommender = Recommender.load(path)

        def in_python(query: str | None, *, search: bool, hours: float | None = None) -> Any:
            wishes = Wishes(half_life_hours=hours)
            if search:
                found = recommender.search(query, k=ALL, time=NOW, wishes=wishes)
            else:
                found = recommender.recommend(
                    history=["i9"], query=query, k=ALL, time=NOW, wishes=wishes
                )
            return [{"item_id": each.item_id, "score": each.score} for each in found]

        yield in_python
    elif request.param == "command":

        def on_the_line(query: str | None, *, search: bool, hours: float | None = None) -> Any:
            wanted = ["search", str(run), str(query)] if search else ["recommend", str(run)]
            if not search:
                wanted += ["--history", "i9"] + ([] if query is None else ["--query", query])
            wanted += [] if hours is None else ["--half-life", str(hours)]
            capture = request.getfixturevalue("printed")
            return capture([*wanted, "-k", str(ALL), "--at", str(NOW), "--json"])

        yield on_the_line
    else:
        url = f"sqlite:///{run.parent / 'service.sqlite'}"
        service = Service(ServiceSettings(path=run, database=url))
        with TestClient(build_app(service)) as client:

            def over_http(query: str | None, *, search: bool, hours: float | None = None) -> Any:
                body: dict[str, Any] = {"k": ALL, "time": NOW}
                body |= {"text": query} if search else {"query": query, "history": ["i9"]}
                body["wishes"] = {"half_life_hours": hours}
                answer = client.post(f"/v1/{'search' if search else 'recommend'}", json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()["items"]

            yield over_http


@pytest.fixture(scope="module")
def printed() -> Callable[[list[str]], list[dict[str, Any]]]:
    """Runs a command in this process and reads what it prints."""

    def run_it(words: list[str]) -> list[dict[str, Any]]:
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            assert main(words) == 0
        items: list[dict[str, Any]] = json.loads(told.getvalue())["items"]
        return items

    return run_it


def firsts(found: list[dict[str, Any]]) -> set[str]:
    """Of each pair of twins the one that comes first: all old, or all new, or some of each."""
    place = {each["item_id"]: row for row, each in enumerate(found)}
    pairs = [(a, b) for a, b in zip(OLD, NEW, strict=True) if a in place and b in place]
    assert pairs, found
    return {"new" if place[b] < place[a] else "old" for a, b in pairs}


@pytest.mark.parametrize("search", [True, False], ids=["search", "recommend"])
def test_the_newer_twin_comes_first_where_the_setting_or_the_query_asks(
    search: bool, when: str, ask: Ask
) -> None:
    for query in ("新款手机", "the LATEST phone"):
        assert firsts(ask(query, search=search)) == {"new"}
    wanted = {"new"} if when == "always" else {"old"}
    for query in ("手机", "phone", "renewed phone"):
        assert firsts(ask(query, search=search)) == wanted
    # a request's own half-life counts before the setting: with a very long one age has no effect
    if search:
        assert firsts(ask("新款手机", search=True, hours=1e-3)) == {"new"}
        scores = {e["item_id"]: e["score"] for e in ask("新款手机", search=True, hours=1e9)}
        assert scores["i0"] == pytest.approx(scores["i1"], abs=1e-6)


def test_a_list_without_a_query_is_aged_by_the_setting_alone(when: str, ask: Ask) -> None:
    assert firsts(ask(None, search=False)) == ({"new"} if when == "always" else {"old"})


def test_odds_halve_with_the_half_life_of_the_settings(run: Path, when: str) -> None:
    recommender = Recommender.load(run)
    tau = float(recommender.retriever.model.temperature.detach())
    found = recommender.search("新款手机", k=ALL, time=NOW)
    scores = {each.item_id: each.score for each in found}
    day = math.log(2) * tau / APART
    for old, new in zip(OLD, NEW, strict=True):
        if old in scores:
            assert scores[new] - scores[old] == pytest.approx(math.log(2) * tau, rel=1e-3)
    plain = Recommender.load(run, overrides=["evaluation.half_life_hours=null"])
    same = {e.item_id: e.score for e in plain.search("新款手机", k=ALL, time=NOW)}
    assert same["i1"] - scores["i1"] == pytest.approx(day, rel=1e-2)
    other = Recommender.load(run, overrides=["evaluation.half_life_when=asked"])
    assert other.search("手机", k=ALL, time=NOW) == plain.search("手机", k=ALL, time=NOW)


@pytest.mark.parametrize(
    ("query", "asks"),
    [
        ("new phones", True),
        ("Phones, NEWEST first", True),
        ("新款手机", True),
        ("手机最新款", True),
        ("renew my phone", False),
        ("手机", False),
        ("", False),
    ],
)
def test_words_that_ask_for_the_new(query: str, asks: bool) -> None:
    assert asks_for_new(query, EvaluationConfig().new_words) is asks
    assert not asks_for_new(query, ())
    assert asks_for_new("just out: phones", ("just out",)) and not asks_for_new(
        "out", ("just out",)
    )


def test_what_cannot_be_counted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="half_life_hours"):
        a_config(half_life_hours=0)
    log = pl.DataFrame([("u", f"i{n}", n) for n in range(6)], ["user", "item", "at"], orient="row")
    catalogue = write_tables(
        tmp_path / "source", items=things(6), log=log,
        catalogue={"name": "plain", "kind": "shop", "interactions": {"order": "at"},
                   "split": {"protocol": "none"}},
    )  # fmt: skip
    prepare(catalogue, tmp_path / "source", tmp_path / "data", num_workers=1)
    with pytest.raises(ConfigError, match=r"half_life_hours is 48, but .* items\.available\.from"):
        train(a_config(half_life_hours=48), tmp_path / "data", tmp_path / "run")
