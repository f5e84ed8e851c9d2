"""Every kind of index at fifty thousand items: recall, speed, filters, items that come and go.

Qdrant has no part in it: its client in memory compares all, and a server is none of ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from test_index_parts import trained_like

from mmrec.retrieval.filters import Condition
from mmrec.retrieval.indexes.build import IndexKind, build_index
from mmrec.retrieval.indexes.database import DatabaseIndex
from mmrec.retrieval.indexes.protocol import ItemIndex
from mmrec.retrieval.indexes.rows import FloatArray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODEL = "a" * 64
NUM_ITEMS, WIDTH, K, BATCH, ROUNDS = 50_000, 128, 10, 32, 3
NUM_RARE, NUM_SEEN = 4, 200
IDS = [f"i{row}" for row in range(NUM_ITEMS)]


def recall(found: list[list[str]], scores: FloatArray, allowed: np.ndarray) -> float:
    """Share of the lists' places whose score reaches the K-th of brute force."""
    masked = np.where(allowed, scores, -np.inf)
    least = -np.sort(-masked, axis=1)[:, K - 1 : K]
    rows = np.array([[int(item_id[1:]) for item_id in each] for each in found])
    assert rows.shape == (len(scores), K)  # K results, none twice
    assert all(len(set(each)) == K for each in found)
    assert np.take_along_axis(np.broadcast_to(allowed, scores.shape), rows, 1).all()
    return float((np.take_along_axis(scores, rows, 1) >= least - 1e-5).mean())


def times_faster(quick: Callable[[], object], slow: Callable[[], object]) -> float:
    """Median over rounds in which both take turns, after one that warms them up."""
    ratios = []
    for _ in range(ROUNDS + 1):
        begun = time.perf_counter()
        quick()
        between = time.perf_counter()
        slow()
        ratios.append((time.perf_counter() - between) / (between - begun))
    return float(np.median(ratios[1:]))


def searches(index: ItemIndex, queries: FloatArray) -> Callable[[], object]:
    batches = [queries[start : start + BATCH] for start in range(0, len(queries), BATCH)]
    return lambda: [index.search(batch, K) for batch in batches]


@pytest.mark.parametrize("kind", ["int8", "ivf", "hnsw", "lancedb"])
def test_fifty_thousand_items_by_every_kind(
    kind: IndexKind, record_property: Callable[[str, object], None]
) -> None:
    vectors, users = trained_like(NUM_ITEMS, width=WIDTH)
    queries, asked = users[::2], users[1::2]  # those it is tuned with, and others
    random = np.random.default_rng(2)
    category, stock = random.integers(0, 5, NUM_ITEMS), random.integers(0, 4, NUM_ITEMS)
    category[random.permutation(NUM_ITEMS)[:NUM_RARE]] = 9
    table = pl.DataFrame({"category": [f"c{each}" for each in category], "stock": stock * 1.0})
    named = {"model_hash": MODEL, "attributes": table}
    index = build_index(kind, IDS, vectors, queries=queries, **named)
    assert index.kind == kind and len(index) == NUM_ITEMS

    scores = asked @ vectors.T
    everything = np.ones(NUM_ITEMS, np.bool_)
    shares = {"all": recall(index.search(asked, K).item_ids, scores, everything)}
    where = [Condition("category", any_of=("c1", "c3")), Condition("stock", minimum=1)]
    held = np.isin(category, [1, 3]) & (stock >= 1)
    seen = np.zeros(scores.shape, np.bool_)
    best = np.argsort(-np.where(held, scores, -np.inf), axis=1)[:, :NUM_SEEN]
    np.put_along_axis(seen, best, True, 1)  # what each would have been shown first
    without = [[IDS[row] for row in rows] for rows in best]
    filtered = index.search(asked, K, where=where, without=without)
    shares["filtered"] = recall(filtered.item_ids, scores, held & ~seen)
    assert min(shares.values()) >= 0.95, shares
    rare = {IDS[row] for row in np.flatnonzero(category == 9)}
    few = index.search(asked[:20], K, where=[Condition("category", any_of=("c9",))])
    assert all(len(each) == NUM_RARE and set(each) == rare for each in few.item_ids)

    new = 2 * asked[:1]
    index.add(["new"], new, model_hash=MODEL, attributes=table[:1])
    assert index.search(asked[:1], 1).item_ids == [["new"]]
    gone = {"new", *(item_id for [item_id] in index.search(asked[1:50], 1).item_ids)}
    assert index.remove(sorted(gone)) == len(gone)
    left = index.search(asked, K).item_ids
    assert not gone & {item_id for each in left for item_id in each}

    exact = build_index("exact", IDS, vectors, **named)
    faster = times_faster(searches(index, asked), searches(exact, asked))
    if isinstance(index, DatabaseIndex):  # its vectors lie on disk: beside its own full scan
        database, few_asked = index._database, asked[:40]
        faster_than_scan = times_faster(
            lambda: database.search(few_asked, K, (), exact=False),
            lambda: database.search(few_asked, K, (), exact=True),
        )
        record_property("times as fast as its own full scan", faster_than_scan)
        print(f"{kind}: {faster_than_scan:.1f} times as fast as its own full scan")
        assert faster_than_scan > 2
    print(f"{kind}: recall@{K} {shares}, {faster:.1f} times as fast as exact in memory")
    record_property("recall", shares)
    record_property("times as fast as exact in memory", faster)
    if kind in ("ivf", "hnsw"):
        assert faster > 2
