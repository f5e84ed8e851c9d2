"""Explanations as users get them: by the library, the command and the service, in two languages.

What they say is held against the tables and the log that the catalogue was prepared from.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fastapi.testclient import TestClient
from tiny_run import CATALOGUE, NUM_USERS, tiny_config, write_source

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import parse_config
from mmrec.recommender import Recommender, Wishes
from mmrec.retrieval.explanation_words import LANGUAGES, Language
from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.training.train import train

K = 4
QUOTED = {"en": r"'([^']*)'", "zh": "“([^”]*)”"}
NO_EVENT = {"en": "For no single thing that you met", "zh": "并非因为某一次接触"}
ATTRIBUTES: dict[str, Any] = {
    "tags": {"type": "set", "separator": "|"},
    "studio": {"type": "category"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny catalogue with tags and a studio, of which a model reads text and attributes."""
    folder = tmp_path_factory.mktemp("told")
    write_source(folder / "source")
    table = pl.read_csv(folder / "source" / "items.csv", infer_schema=False)
    told = [
        {"tags": ["sad", "sad|slow", "loud"][n % 3], "studio": f"studio {n % 4}"}
        for n in range(len(table))
    ]
    table.hstack(pl.DataFrame(told)).write_csv(folder / "source" / "items.csv")
    catalogue = {**CATALOGUE, "items": {**CATALOGUE["items"], "attributes": ATTRIBUTES}}
    (folder / "catalogue.yaml").write_text(json.dumps(catalogue), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    document = tiny_config().model_dump()
    document["encoders"] = {
        "text": document["encoders"]["text"],
        "attributes": {"kind": "fields", "options": {"num_knots": 4}},
    }
    train(parse_config(document), folder / "data", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.load(run)


@pytest.fixture(scope="module")
def client(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'service.sqlite'}"
    with TestClient(build_app(Service(ServiceSettings(path=run, database=url)))) as client:
        yield client


@pytest.fixture(scope="module")
def table(run: Path) -> dict[str, dict[str, str]]:
    """Rows of the items' table by id."""
    rows = pl.read_csv(run.parent / "source" / "items.csv", infer_schema=False).to_dicts()
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def met(run: Path) -> dict[str, set[str]]:
    """What each user met, as the log has it."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in pl.read_csv(run.parent / "source" / "log.csv", infer_schema=False).to_dicts():
        found[row["user"]].add(row["item"])
    return found


def asked_of_service(client: TestClient, user: str, language: Language) -> list[dict[str, Any]]:
    asked = {"user_id": user, "k": K, "wishes": {"why": language}}
    answer = client.post("/v1/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    assert items
    return items


def words_of(cell: str | None) -> set[str]:
    return set((cell or "").split("|")) - {""}


def test_what_is_named_is_in_the_log_and_in_the_table(
    client: TestClient, table: dict[str, dict[str, str]], met: dict[str, set[str]]
) -> None:
    """Events, titles and tags of every user's list in both languages, more than 200 of them."""
    num_told, shared = 0, set()
    for user in sorted(met):
        for language in LANGUAGES:
            for item in asked_of_service(client, user, language):
                why = item["why"]
                named = [event["item_id"] for event in why["events"]]
                assert set(named) <= met[user]
                titles = [table[each]["title"] or each for each in named]
                assert re.findall(QUOTED[language], why["words"]) == titles
                for event in why["events"]:
                    mine, other = table[item["item_id"]], table[event["item_id"]]
                    both = {
                        name: words
                        for name in ATTRIBUTES
                        if (words := words_of(mine[name]) & words_of(other[name]))
                    }
                    assert {name: set(words) for name, words in event["shared"].items()} == both
                    assert all(word in why["words"] for words in both.values() for word in words)
                    shared |= both.keys()
                assert set(why["parts"]) == {"attributes", "users", "text"} - (
                    set() if table[item["item_id"]]["title"] else {"text"}
                )
                if not named:
                    assert why["words"].startswith(NO_EVENT[language])
                num_told += bool(named)
    assert num_told >= 200 and shared == {"tags", "studio"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_library_command_and_service_tell_the_same(
    run: Path,
    recommender: Recommender,
    client: TestClient,
    capsys: pytest.CaptureFixture[str],
    language: Language,
) -> None:
    for user in range(0, NUM_USERS, 10):
        told = asked_of_service(client, f"u{user}", language)
        asked = ["recommend", str(run), "--user", f"u{user}", "-k", str(K), "--why", language]
        assert main([*asked, "--json"]) == 0
        items = json.loads(capsys.readouterr().out)["items"]
        assert main(asked) == 0
        as_table = capsys.readouterr().out
        found = recommender.recommend(f"u{user}", k=K, wishes=Wishes(why=language))
        again = recommender.explain([each.item_id for each in found], f"u{user}", language=language)
        for each, alone, by_command, by_service in zip(found, again, items, told, strict=True):
            assert each.why is not None and each.why == alone
            expected = json.loads(json.dumps(asdict(each.why)))
            assert rounded(by_command["why"]) == rounded(expected)
            # the item that it is about has its id one level above
            assert rounded({"item_id": by_service["item_id"], **by_service["why"]}) == rounded(
                expected
            )
            assert each.why.words in as_table
            part = {"en": "its attributes", "zh": "属性"}[language]
            share = each.why.parts["attributes"].share
            assert (f"{part} {share:.0%}" in each.why.words) == (share >= 0.01)


def rounded(told: Any) -> Any:
    """The same with numbers to five digits, which two passes of a model agree in."""
    if isinstance(told, dict):
        return {name: rounded(each) for name, each in told.items()}
    if isinstance(told, list):
        return [rounded(each) for each in told]
    return pytest.approx(told, abs=1e-5) if isinstance(told, float) else told
