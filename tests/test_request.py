"""Users asked at a time and in a context: export, score and the Python API tell the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from told_catalogue import LATE, MONDAY, NUM_ITEMS, told_config

from mmrec.cli import main
from mmrec.recommender import Recommender
from mmrec.request import Request, read_request
from mmrec.retrieval.exported import Export
from mmrec.training.train import train

pytest_plugins = ["told_catalogue"]
pytestmark = pytest.mark.usefixtures("restored_torch")

NIGHT = MONDAY + 30 * 86_400 + 3 * 3_600
ASKED = ["--at", str(NIGHT), "--context", "device=phone"]


@pytest.fixture(scope="module")
def run(told_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of content alone and without popularity: a copy of an item has the item's own score."""
    run = tmp_path_factory.mktemp("request") / "run"
    model = {"item": "content", "popularity": False}
    train(told_config(model, learning_rate=0.2), told_shop, run)
    return run


def users_of(run: Path, out: Path, *asked: str) -> tuple[list[str], np.ndarray]:
    words = ["export", str(run), "--out", str(out), "--format", "parquet,npy,faiss", "--bundle"]
    assert main([*words, *asked]) == 0
    ids, users = Export.open(out).users()
    assert np.array_equal(np.load(out / "user_embeddings.npy"), users[:, :-1])
    return ids, users[:, :-1]


def test_an_export_holds_users_as_the_request_finds_them(run: Path, tmp_path: Path) -> None:
    recommender = Recommender.load(run)
    ids, still = users_of(run, tmp_path / "still")
    _, asked = users_of(run, tmp_path / "asked", *ASKED)
    _, timed = users_of(run, tmp_path / "timed", "--at", str(NIGHT))
    live = recommender.embed_users(time=NIGHT, context={"device": "phone"})
    np.testing.assert_allclose(asked, live, atol=1e-6)
    np.testing.assert_allclose(still, recommender.embed_users(users=ids), atol=1e-6)
    for one, other in ((asked, still), (timed, still), (asked, timed)):
        assert np.abs(one - other).max(axis=1).min() > 1e-4  # of every user

    request = {"time": float(NIGHT), "context": {"device": "phone"}}
    assert Export.open(tmp_path / "asked").manifest["request"] == request
    assert Export.open(tmp_path / "still").manifest["request"] is None
    bundle = Recommender.load(tmp_path / "asked" / "bundle")  # it serves any request
    np.testing.assert_allclose(bundle.embed_users(), still, atol=1e-6)


@pytest.mark.parametrize("at", [NIGHT, NIGHT + 300 * 86_400], ids=["before-late", "after-late"])
def test_ranks_of_score_are_places_in_the_list(
    run: Path, told_shop: Path, tmp_path: Path, at: int
) -> None:
    """Of every item that may be listed, scored as if it were new, under one request."""
    source, out = told_shop.parent / "source", tmp_path / "scores.parquet"
    words = ["score", str(run), "--items", str(source / "items.csv"), "--source", str(source)]
    asked = ["--at", str(at), "--context", "device=phone"]
    assert main([*words, "--out", str(out), "--users", "u0,u7", *asked]) == 0
    scores = pl.read_parquet(out)
    recommender = Recommender.load(run)
    for user in ("u0", "u7"):
        found = recommender.recommend(user, k=NUM_ITEMS, time=at, context={"device": "phone"})
        of_user = scores.filter(pl.col("user_id") == user)
        ranks = dict(of_user.select("item_id", "rank").iter_rows())
        cosines = dict(of_user.select("item_id", "score").iter_rows())
        assert [ranks[each.item_id] for each in found] == [each.rank for each in found]
        assert [cosines[each.item_id] for each in found] == pytest.approx(
            [each.score for each in found], abs=1e-5
        )
        listed = {each.item_id for each in found}
        met = recommender.retriever.users.complete(int(user[1:])).item_index
        assert (LATE in listed) == (at > NIGHT and int(LATE[1:]) not in met)
    items = recommender.new_items(source / "items.csv", source)
    live = recommender.score(items, users=["u0", "u7"], time=at, context={"device": "phone"})
    assert live.equals(scores)
    unasked = recommender.score(items, users=["u0", "u7"])
    pairs = ["user_id", "item_id"]
    gap = unasked.sort(pairs)["score"] - scores.sort(pairs)["score"]
    assert float(gap.abs().max()) > 1e-4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("whom", "asked"),
    [(["--user", "u7"], {"user_id": "u7"}), (["--history", "i1,i2"], {"history": ["i1", "i2"]})],
    ids=["user", "history"],
)
def test_predict_tells_what_the_request_lets_expect(
    run: Path, capsys: pytest.CaptureFixture[str], whom: list[str], asked: dict[str, Any]
) -> None:
    words = ["predict", str(run), "--items", "i1,i4", *whom, "--json"]
    told = []
    for options in ([], ["--at", str(NIGHT)], ASKED):
        assert main([*words, *options]) == 0
        told.append(json.loads(capsys.readouterr().out))
    live = Recommender.load(run).predict(
        ["i1", "i4"], **asked, time=NIGHT, context={"device": "phone"}
    )
    assert told[2]["items"] == live
    assert told[2]["query"]["time"] == NIGHT
    assert told[2]["query"]["context"] == {"device": "phone"}
    assert len({str(each["items"]) for each in told}) == 3  # time and place both count


def test_labels_of_items_are_told_at_no_time(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), "--items", "i1", "--at", "now"]) == 2
    assert "--at and --context are of a user's request" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "score", "predict", "path"])
@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["--context", "place=home"], "context 'place' is no column of the log; .* has device"),
        (["--context", "phone"], "--context is 'phone': write NAME=VALUE"),
        (["--at", "noon"], "--at is 'noon': give now, Unix seconds or ISO 8601"),
    ],
    ids=["no-column", "no-pair", "no-time"],
)
def test_what_cannot_be_asked_is_one_line(
    run: Path,
    told_shop: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    asked: list[str],
    line: str,
) -> None:
    words = [command, str(run)]
    if command in ("export", "score"):
        words += ["--out", str(tmp_path / "out")]
    else:
        words += ["--user", "u0"] + ["--items", "i1"] * (command == "predict")
    if command == "score":
        source = told_shop.parent / "source"
        words += ["--items", str(source / "items.csv"), "--source", str(source)]
    assert main([*words, *asked]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(line, told)
    assert list(tmp_path.iterdir()) == []


def test_a_request_of_nothing_is_none() -> None:
    assert read_request(None, None).document() is None
    asked = read_request("2023-11-20T00:00", ["device=phone"])
    assert asked == Request(float(MONDAY), {"device": "phone"})
