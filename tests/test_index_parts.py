"""What indexes are made of: exact search, int8, faiss, ids, vectors that grow, recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.retrieval.indexes import exact, item_ids, local, rescored
from mmrec.retrieval.indexes.exact import ExactIndex
from mmrec.retrieval.indexes.faiss import FAISS_KINDS, FaissIndex, FaissKind, lists_for
from mmrec.retrieval.indexes.growing import GrowingVectors
from mmrec.retrieval.indexes.item_ids import ItemIds
from mmrec.retrieval.indexes.local import LocalIndex, LocalKind
from mmrec.retrieval.indexes.quantised import DecodedVectors, Int8Index, quantise
from mmrec.retrieval.indexes.recall import measure_recall, recall_at_k, tune
from mmrec.retrieval.indexes.rescored import RescoredIndex
from mmrec.retrieval.indexes.rows import FloatArray, IntArray


def trained_like(number: int, width: int = 32, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    """Items [embedding, popularity] in clusters, and 200 users [embedding, 1] near them."""
    random = np.random.default_rng(seed)
    spread = np.sqrt(0.85 ** np.arange(width))
    centres = random.standard_normal((number // 100, width)) * spread

    def near(count: int) -> np.ndarray:
        which = random.integers(len(centres), size=count)
        vectors = centres[which] + 0.7 * random.standard_normal((count, width)) * spread
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    items = np.column_stack([near(number), 0.08 * random.standard_normal(number)])
    users = np.column_stack([near(200), np.ones(200)])
    return items.astype(np.float32), users.astype(np.float32)


@given(
    shape=st.tuples(st.integers(0, 40), st.integers(1, 5), st.integers(1, 6)),
    k=st.integers(1, 12),
    block=st.sampled_from([3, 7, 100]),
    share=st.sampled_from([None, 0.0, 0.3, 1.0]),
    seed=st.integers(0, 1_000),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_exact_search_is_a_stable_sort_of_all_products(
    shape: tuple[int, int, int], k: int, block: int, share: float | None, seed: int
) -> None:
    """Whole numbers, so that many products are equal: ties are listed in the order of rows."""
    num_rows, num_queries, width = shape
    random = np.random.default_rng(seed)
    vectors = random.integers(-2, 3, (num_rows, width)).astype(np.float32)
    queries = random.integers(-2, 3, (num_queries, width)).astype(np.float32)
    allowed = None if share is None else random.random(num_rows) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "BLOCK_ROWS", block)
        patch.setattr(exact, "BLOCK_QUERIES", 2)
        scores, rows = ExactIndex(vectors).search(queries, k, allowed)
    products = queries @ vectors.T
    if allowed is not None:
        products[:, ~allowed] = -np.inf
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(products, order, 1)
    kept = order.shape[1]
    assert np.array_equal(scores[:, :kept], best) and np.all(scores[:, kept:] == -np.inf)
    assert np.array_equal(rows[:, :kept], np.where(np.isfinite(best), order, -1))
    assert np.all(rows[:, kept:] == -1)


def test_equal_vectors_have_equal_scores_wherever_they_lie() -> None:
    """A matrix product may round a pair differently by its place; a list does not show that."""
    random = np.random.default_rng(0)
    kinds = random.standard_normal((5, 37)).astype(np.float32)
    vectors = kinds[random.integers(5, size=3_001)]
    queries = random.standard_normal((9, 37)).astype(np.float32)
    scores, rows = ExactIndex(vectors).search(queries, 50)
    for query in range(9):
        assert len(set(scores[query].tolist())) == 1
        best = int(np.argmax(kinds @ queries[query]))
        same = np.flatnonzero((vectors == kinds[best]).all(1))[:50]
        assert np.array_equal(rows[query], same)


def test_catalogue_of_one_tie_is_listed_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "MAX_TIES", 4)
    monkeypatch.setattr(exact, "BLOCK_ROWS", 10)
    _, rows = ExactIndex(np.ones((100, 3), np.float32)).search(np.zeros((2, 3), np.float32), 7)
    assert np.array_equal(rows, [range(7)] * 2)


def test_int8_is_off_by_half_a_scale_and_takes_a_quarter() -> None:
    vectors, _ = trained_like(3_000, width=128)
    vectors[5] = 0
    codes, scales = quantise(vectors, 129)
    off = np.abs(DecodedVectors(codes, scales)[0:3_000] - vectors)
    assert np.all(off <= scales[:, None] / 2 + 1e-7)
    assert np.all(np.abs(codes).max(1)[np.arange(3_000) != 5] == 127)
    assert codes.nbytes / vectors.nbytes == 0.25
    assert (codes.nbytes + scales.nbytes) / vectors.nbytes < 0.26


def test_int8_finds_what_floats_find() -> None:
    vectors, queries = trained_like(5_000)
    index = Int8Index.build(vectors[:4_000], 33)
    index.add(vectors[4_000:])
    assert recall_at_k(index, vectors, queries, 10) > 0.95
    assert recall_at_k(RescoredIndex(GrowingVectors(vectors), index), vectors, queries, 10) == 1


@pytest.mark.parametrize("kind", FAISS_KINDS)
def test_faiss_index_is_kept_as_one_file(kind: FaissKind, tmp_path: Path) -> None:
    vectors, queries = trained_like(2_000)
    index = FaissIndex.build(kind, vectors, 33)
    assert index.kind == kind and len(index) == 2_000
    index.effort = index.efforts[-1]
    assert recall_at_k(index, vectors, queries, 10) > 0.95
    index.write(tmp_path)
    opened = FaissIndex.read(tmp_path / "index.faiss")
    assert opened.kind == kind and opened.parameters() == index.parameters()
    assert opened.effort == index.effort
    before, after = index.search(queries, 7), opened.search(queries, 7)
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_directions_that_hold_nothing_are_left_out() -> None:
    """Vectors of a plane are turned into it, and products stay what they are."""
    random = np.random.default_rng(0)
    plane = random.standard_normal((2, 40)).astype(np.float32)
    vectors = random.standard_normal((500, 2)).astype(np.float32) @ plane
    index = FaissIndex.build("ivf", vectors, 40, kept=0.999)
    assert index.parameters()["directions"] == 16
    assert FaissIndex.build("ivf", vectors, 40).parameters()["directions"] == 48
    index.effort = index.efforts[-1]
    scores, _ = index.search(vectors[:50], 5)
    exact_scores, _ = ExactIndex(vectors).search(vectors[:50], 5)
    assert scores == pytest.approx(exact_scores, rel=0.02)


@pytest.mark.parametrize("kind", FAISS_KINDS)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_faiss_index_finds_what_is_allowed_alone(kind: FaissKind, share: float) -> None:
    vectors, queries = trained_like(2_000)
    index = FaissIndex.build(kind, vectors, 33)
    allowed = np.random.default_rng(1).random(2_000) < share
    _, rows = index.search(queries, 10, allowed)
    assert allowed[rows[rows >= 0]].all()
    assert (rows >= 0).mean() > 0.9


def test_lists_grow_with_the_root_of_the_catalogue() -> None:
    assert lists_for(1_000_000) == 8_000 and lists_for(10_000) == 200 and lists_for(3) == 1


def test_effort_is_the_least_that_finds_enough() -> None:
    vectors, queries = trained_like(4_000)
    index = FaissIndex.build("ivf", vectors, 33)
    tune(index, vectors, queries, recall=0.9)
    chosen = index.effort
    assert 1 < chosen < index.efforts[-1]
    found = measure_recall(index, vectors, queries)
    assert min(found.at_10, found.at_100) >= 0.9
    index.effort = index.efforts[index.efforts.index(chosen) - 1]
    less = measure_recall(index, vectors, queries)
    assert min(less.at_10, less.at_100) < 0.9


def test_recall_out_of_reach_is_said(caplog: pytest.LogCaptureFixture) -> None:
    vectors, queries = trained_like(4_000, width=64)
    index = FaissIndex.build("ivf", vectors, 65)
    tune(index, vectors, queries, recall=1.0)
    assert index.effort == index.efforts[-1]
    assert "of the best items, 1.000 were asked for" in caplog.text


def test_small_catalogue_is_compared_one_and_all(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MIN_ROWS", 2_000)
    monkeypatch.setattr(rescored, "FEW_ROWS", 100)
    vectors, _ = trained_like(2_000)
    ids = [f"i{row}" for row in range(2_000)]
    index = LocalIndex.build("ivf", ids[:-1], vectors[:-1], model_hash="a")
    assert "1999 items are compared one and all: kind ivf is for 2000 and more" in caplog.text
    assert index.kind == "exact"
    index.add(ids[-1:], vectors[-1:], model_hash="a")  # enough for what was asked for
    assert index.kind == "ivf" and index.recall is not None and index.recall.at_100 >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "ivf", "hnsw"])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.9])
def test_fifty_thousand_items_are_found(kind: LocalKind, share: float) -> None:
    vectors, queries = trained_like(50_000, width=64)
    ids = [f"i{row}" for row in range(50_000)]
    index = LocalIndex.build(kind, ids, vectors, model_hash="a", queries=queries)
    assert index.kind == kind and index.recall is not None
    assert index.recall.at_10 >= 0.95 and index.recall.at_100 >= 0.95
    allowed = np.random.default_rng(1).random(50_000) < share
    best, _ = ExactIndex(vectors).search(queries, 10, allowed)
    scores, rows = index.search_rows(queries, 10, allowed=allowed)
    assert allowed[rows].all()  # K results, none of which is -1
    assert (scores >= best[:, -1:] - 1e-5).mean() >= 0.95


def test_rows_that_a_finder_misses_are_looked_for() -> None:
    """A finder that comes back with too few rows is made up for by exact search."""

    class Forgetful(Int8Index):
        def search(self, queries: FloatArray, k: int, allowed: Any = None) -> tuple[Any, IntArray]:
            scores, rows = super().search(queries, k, allowed)
            rows[::2, 3:] = -1
            return scores, rows

    vectors, queries = trained_like(300)
    index = RescoredIndex(GrowingVectors(vectors), Forgetful.build(vectors, 33))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescored, "FEW_ROWS", 0)
        scores, rows = index.search(queries, 9)
    expected_scores, expected = ExactIndex(vectors).search(queries, 9)
    assert np.array_equal(rows, expected) and np.array_equal(scores, expected_scores)


@given(
    names=st.lists(st.text(max_size=3), max_size=20),
    added=st.lists(st.text(max_size=3), max_size=20),
    hashes=st.sampled_from([2, 10_000]),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_ids_are_found_though_hashes_agree(names: list[str], added: list[str], hashes: int) -> None:
    def few(given_ids: list[str]) -> np.ndarray:
        return np.array([hash(each) % hashes for each in given_ids], np.int64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_ids, "_hashes", few)
        ids = ItemIds(names)
        ids.add(added)
        everything = [*names, *added]
        last = {each: row for row, each in enumerate(everything)}
        asked = [*last, "never given"]
        assert len(ids) == len(everything)
        assert ids.rows(asked).tolist() == [last.get(each, -1) for each in asked]
        rows = np.array([*range(len(everything)), -1])
        assert ids.ids(rows) == [*everything, None]
        assert ids.column().to_pylist() == everything


def test_vectors_grow_and_are_written_whole(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = random.standard_normal((50, 4)).astype(np.float32)
    np.save(tmp_path / "first.npy", whole[:20])
    vectors = GrowingVectors.read(tmp_path / "first.npy")
    for start, stop in ((20, 21), (21, 22), (22, 50)):
        vectors.add(whole[start:stop])
    assert len(vectors) == 50 and vectors.width == 4
    for part in (slice(0, 9), slice(15, 30), slice(40, 99), slice(0, 0)):
        assert np.array_equal(vectors[part], whole[part])
    rows = random.integers(50, size=30)
    assert np.array_equal(vectors[rows], whole[rows])
    vectors.write(tmp_path / "all.npy")
    assert np.array_equal(np.load(tmp_path / "all.npy"), whole)
