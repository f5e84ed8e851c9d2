"""Scores of new items: against a slow loop, in tiles, any subset of media, refusals by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from data_prep.errors import DataError
from mmrec.errors import ItemNotFound, MediaError, UserError
from mmrec.recommender import Recommender
from mmrec.retrieval import cold
from mmrec.retrieval.cold import score_file

pytest_plugins = ["tiny_run"]

NUM_MORE = 40
NUM_SCORED = 6 + NUM_MORE


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    return Recommender.load(tiny_run)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """New items of every kind; `i2` is in the catalogue, `empty` has nothing, `bad` half of it.

    Forty more with a title keep what cannot be used below a share of 5 %.
    """
    rows = [
        ("whole", "A red letter", "Night at sea.", "3.png", "7.wav"),
        ("picture", "", "", "10.png", ""),
        ("sound", "", "", "", "2.wav"),
        ("words", "Old machine", "", "", ""),
        ("i2", "The garden", "", "1.png", ""),
        ("empty", "", "", "", ""),
        ("bad", "Storm", "", "log.csv", ""),
        ("lost", "", "", "nowhere.png", ""),
        *((f"more{n}", f"Letter {n}", "", "", "") for n in range(NUM_MORE)),
    ]
    path = tmp_path / "new.csv"
    columns = ["id", "title", "plot", "poster", "sound"]
    pl.DataFrame(rows, columns, orient="row").write_csv(path)
    return path


def slow_rank(recommender: Recommender, user_row: int, item_id: str, content: np.ndarray) -> int:
    """The rank by the words of the contract: all candidates, one at a time."""
    retriever = recommender.retriever
    user = retriever.stored_user(user_row)
    vector = retriever.user_vectors([user])[0]
    model = retriever.model
    tau = float(model.temperature.detach())
    own = float(torch.from_numpy(content) @ vector)
    expected = float(torch.from_numpy(content) @ model.expectation[:-1] + model.expectation[-1])
    own += tau * (float(model.offset) + expected)
    better = 0
    for row in retriever.items.candidates.tolist():
        if row in user.seen or retriever.items.item_ids[row] == item_id:
            continue
        bias = float(retriever.vectors.bias[row])
        better += float(retriever.vectors.embedding[row] @ vector) + tau * bias > own
    return better + 1


@pytest.mark.parametrize("max_scores", [2**24, 30], ids=["one tile", "many tiles"])
def test_file_equals_a_slow_loop(
    recommender: Recommender,
    tiny_run: Path,
    tiny_source: Path,
    table: Path,
    tmp_path: Path,
    max_scores: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cold, "MAX_SCORES", max_scores)
    monkeypatch.setattr(cold, "CANDIDATE_TILE", 5 if max_scores == 30 else 65_536)
    line = score_file(tiny_run, table, tiny_source, tmp_path / "out.parquet")
    assert line.startswith(f"{NUM_SCORED} items for 30 users: {30 * NUM_SCORED:,} rows in ")
    assert "items refused, no usable medium: 2 (empty, lost)" in line
    assert "broken media: 2 (bad image: log.csv: broken image" in line
    assert "lost image: nowhere.png: No such file" in line
    assert "\n" not in line
    scores = pl.read_parquet(tmp_path / "out.parquet")
    columns = ["user_id", "item_id", "score", "rank", "modalities", "confidence"]
    assert scores.columns == columns
    assert scores.unique(["user_id", "item_id"]).height == scores.height
    made_of = dict(scores.select("item_id", "modalities").iter_rows())
    assert set(made_of["whole"]) == {"text", "image", "audio"}
    assert made_of["picture"] == ["image"] and made_of["bad"] == ["text"]
    embedded = recommender.embed_items(recommender.new_items(table, tiny_source))
    content = dict(zip(embedded.item_ids, embedded.embedding, strict=True))
    for user_id in ("u0", "u13"):
        row = recommender.retriever.users.index_of(user_id)
        assert row is not None
        vector = recommender.retriever.user_vectors([recommender.retriever.stored_user(row)])[0]
        part = scores.filter(pl.col("user_id") == user_id)
        assert part["score"].to_list() == sorted(part["score"], reverse=True)
        for item_id, score, rank in part.select("item_id", "score", "rank").iter_rows():
            assert score == pytest.approx(float(vector.numpy() @ content[item_id]), abs=1e-5)
            assert rank == slow_rank(recommender, row, item_id, content[item_id])


@pytest.mark.parametrize("by", ["user", "item"])
def test_top_keeps_the_best_of_each(
    tiny_run: Path, tiny_source: Path, table: Path, tmp_path: Path, by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    score_file(tiny_run, table, tiny_source, tmp_path / "all.parquet")
    monkeypatch.setattr(cold, "MAX_SCORES", 40)
    score_file(tiny_run, table, tiny_source, tmp_path / "top.parquet", top=2, by=by)
    top = pl.read_parquet(tmp_path / "top.parquet")
    groups = pl.read_parquet(tmp_path / "all.parquet").sort("score", descending=True)
    expected = groups.group_by(f"{by}_id", maintain_order=True).head(2)
    keys = ["user_id", "item_id"]
    best = expected.group_by(f"{by}_id").agg(pl.col("score").min())
    joined = top.join(best, on=f"{by}_id", suffix="_least")
    assert top.height == expected.height == 2 * (30 if by == "user" else NUM_SCORED)
    assert (joined["score"] >= joined["score_least"] - 1e-6).all()
    whole = pl.read_parquet(tmp_path / "all.parquet")
    same = top.join(whole, on=keys)
    assert same.height == top.height and (same["rank"] == same["rank_right"]).all()


@pytest.mark.parametrize("columns", [["poster"], ["title"], ["sound", "title"]], ids=str)
def test_any_subset_of_columns_will_do(
    recommender: Recommender, tiny_source: Path, tmp_path: Path, columns: list[str]
) -> None:
    items = pl.read_csv(tiny_source / "items.csv").select("id", *columns)
    items.write_csv(tmp_path / "some.csv")
    new = recommender.new_items(tmp_path / "some.csv", tiny_source)
    frame = recommender.score(new, users=["u1"])
    kinds = {"poster": "image", "title": "text", "sound": "audio"}
    for modalities in frame["modalities"].to_list():
        assert set(modalities) <= {kinds[column] for column in columns}
    assert frame.height >= 13


def test_scores_of_an_item_do_not_depend_on_its_neighbours(
    recommender: Recommender, tiny_source: Path, table: Path, tmp_path: Path
) -> None:
    together = recommender.embed_items(recommender.new_items(table, tiny_source))
    pl.read_csv(table).filter(pl.col("id") == "sound").write_csv(tmp_path / "one.csv")
    alone = recommender.embed_items(recommender.new_items(tmp_path / "one.csv", tiny_source))
    row = together.item_ids.index("sound")
    # not bit for bit: kernels depend on the shape of a batch
    assert alone.embedding[0] == pytest.approx(together.embedding[row], abs=1e-5)


def test_given_histories_need_no_stored_user(
    recommender: Recommender, tiny_source: Path, table: Path
) -> None:
    new = recommender.new_items(table, tiny_source)
    frame = recommender.score(new, histories=[["i1", "i7"], []])
    assert frame["user_id"].unique().sort().to_list() == ["0", "1"]
    assert (frame.filter(pl.col("user_id") == "1")["score"] == 0).all()


def test_users_are_chosen_and_unknown_ones_told(
    tiny_run: Path, tiny_source: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "out.parquet"
    line = score_file(tiny_run, table, tiny_source, out, users=["u4", "who", "u2"])
    assert "unknown users: 1 (who)" in line
    assert pl.read_parquet(out)["user_id"].unique(maintain_order=True).to_list() == ["u4", "u2"]
    assert [path.name for path in out.parent.iterdir()] == ["out.parquet"]


def test_faults_are_one_line(
    tiny_run: Path, tiny_run_id: Path, tiny_source: Path, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(ItemNotFound, match="no known user among 'who'"):
        score_file(tiny_run, table, tiny_source, out, users=["who"])
    with pytest.raises(UserError, match="knows ids only"):
        score_file(tiny_run_id, table, tiny_source, out)
    with pytest.raises(UserError, match="--top is 0"):
        score_file(tiny_run, table, tiny_source, out, top=0)
    with pytest.raises(UserError, match="--by is 'both': allowed are user, item"):
        score_file(tiny_run, table, tiny_source, out, by="both")
    with pytest.raises(UserError, match="is a folder"):
        score_file(tiny_run, table, tiny_source, tmp_path)
    (tmp_path / "twice.csv").write_text("id,title\nx,a\nx,b\n")
    with pytest.raises(DataError, match="'x'"):
        score_file(tiny_run, tmp_path / "twice.csv", tiny_source, out)
    (tmp_path / "none.csv").write_text("id,poster\nx,nowhere.png\n")
    with pytest.raises(UserError, match="no item can be scored: items refused.*broken media: 1"):
        score_file(tiny_run, tmp_path / "none.csv", tiny_source, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("number", "row", "says"),
    [
        (20, "bad,A title,nowhere.png", None),
        (19, "bad,A title,nowhere.png", None),
        (18, "bad,A title,nowhere.png", "1 of 19 media cannot be used (5.3%, at most 5% "),
        (19, "bad,,", None),
        (18, "bad,,", "1 of 19 items cannot be used (5.3%, at most 5% "),
    ],
    ids=["few media", "5 % of the media", "too many media", "5 % of the items", "too many items"],
)
def test_more_than_five_percent_is_refused(
    number: int, row: str, says: str | None, tiny_run: Path, tiny_source: Path, tmp_path: Path
) -> None:
    """The bad item counts itself: among media by its picture, beside its own title."""
    with_title = number - 1 if row.startswith("bad,A") else number
    rows = ["id,title,poster", *(f"n{n},Night {n}," for n in range(with_title)), row]
    (tmp_path / "new.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "out.parquet"
    if says is None:
        line = score_file(tiny_run, tmp_path / "new.csv", tiny_source, out)
        assert "bad" in line and out.is_file()
        return
    with pytest.raises(MediaError, match=re.escape(says)) as caught:
        score_file(tiny_run, tmp_path / "new.csv", tiny_source, out)
    assert "bad" in str(caught.value) and "--source" in str(caught.value)
    assert "\n" not in str(caught.value) and not out.exists()
