"""Indexes at a million items: recall and speed against exact search, memory, time to build.

Vectors as a trained model gives them: clusters of power-law sizes on the sphere, most of the
spread in few directions, and the dimension of popularity; users near them. The shape follows models
trained on MovieLens-1M: 128 numbers with the spread of 10 to 17 independent ones, nearest items at
a cosine of .85 to .9, and three to four tenths of the spread left within lists of fifty.

Queries come 32 at a time. Memory is what a process of its own gains by opening the index and
answering, as a multiple of the vectors. About three minutes on one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from measure import GB, arguments, report, seconds_of

from mmrec.retrieval.indexes.exact import ExactIndex
from mmrec.retrieval.indexes.faiss import FaissIndex
from mmrec.retrieval.indexes.local import LocalIndex, LocalKind
from mmrec.retrieval.indexes.quantised import Int8Index
from mmrec.retrieval.indexes.recall import recall_at_k
from mmrec.retrieval.indexes.rows import FloatArray, IntArray, Searchable

ITEMS, WIDTH, BATCH, K = 1_000_000, 128, 32, 100
ITEMS_PER_CLUSTER = 200
# Shares of the directions' spread fall by this factor: their number, (1 + f) / (1 - f), is 16.
SPREAD = 0.88
WITHIN_ITEMS, WITHIN_USERS = 0.35, 0.5
POPULARITY = 0.08
NUM_USERS, NUM_BATCHES = 1_000, 10
HELD = "--held"


def trained_like(num_items: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Items (N, D), users to build with and other users to ask with, (Q, D) each."""
    random = np.random.default_rng(0)
    num_clusters = max(2, num_items // ITEMS_PER_CLUSTER)
    spread = np.sqrt(SPREAD ** np.arange(WIDTH) * (1 - SPREAD)).astype(np.float32)
    centres = random.standard_normal((num_clusters, WIDTH), np.float32) * spread
    sizes = (1.0 + np.arange(num_clusters)) ** -0.8
    shares = sizes / sizes.sum()

    def near(count: int, within: float, last: FloatArray) -> FloatArray:
        vectors = np.empty((count, WIDTH + 1), np.float32)
        noise = random.standard_normal((count, WIDTH), np.float32) * spread
        which = random.choice(num_clusters, count, p=shares)
        noise *= np.float32(np.sqrt(within))
        noise += np.float32(np.sqrt(1 - within)) * centres[which]
        vectors[:, :-1] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
        vectors[:, -1] = last
        return vectors

    popularity = POPULARITY * random.standard_normal(num_items, np.float32)
    ones = np.ones(NUM_USERS, np.float32)
    items = near(num_items, WITHIN_ITEMS, popularity)
    return items, near(NUM_USERS, WITHIN_USERS, ones), near(NUM_USERS, WITHIN_USERS, ones)


class _Rows:
    """A LocalIndex by rows, as `recall_at_k` asks it."""

    def __init__(self, index: LocalIndex) -> None:
        self._index = index

    def search(self, queries: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        return self._index.search_rows(queries, k)


def queries_a_second(index: Searchable, queries: FloatArray) -> float:
    """One round of batches."""
    batches = [queries[at * BATCH : (at + 1) * BATCH] for at in range(NUM_BATCHES)]
    index.search(batches[0], K)  # whatever is read for the first time
    seconds = seconds_of(lambda: [index.search(batch, K) for batch in batches])
    return NUM_BATCHES * BATCH / seconds


def held_gb(folder: Path) -> float:
    """Memory that this process gains by opening an index and answering, all vectors read once."""
    _load_libraries()
    process = psutil.Process()
    before = process.memory_info().rss
    index = LocalIndex.load(folder)
    queries = np.random.default_rng(0).standard_normal((BATCH, index.width), np.float32)
    few = np.zeros(index.num_rows, np.bool_)
    few[::11] = True  # so few are compared one and all: every page of the vectors is read
    for allowed in (None, few):
        index.search_rows(queries, K, allowed=allowed)
    return (process.memory_info().rss - before) / GB


def _load_libraries() -> None:
    """Uses what an index uses once: libraries are no part of it."""
    tiny = np.ones((1, 2), np.float32)
    FaissIndex.build("flat", tiny, 2).search(tiny, 1)
    with tempfile.TemporaryDirectory() as name:
        LocalIndex.build("int8", ["item"], tiny, model_hash="tiny").save(Path(name) / "index")
        LocalIndex.load(Path(name) / "index").search(tiny, 1)


def held_elsewhere_gb(folder: Path) -> float:
    """`held_gb` in a process of its own."""
    command = [sys.executable, __file__, HELD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return float(done.stdout)


class Bench:
    """Vectors, and the quicker exact search over them."""

    def __init__(self, num_items: int, small: bool, rounds: int) -> None:
        self.items, self.users, self.asked = trained_like(num_items)
        self.item_ids = [f"item-{row}" for row in range(num_items)]
        self.small, self.rounds = small, rounds
        numpy, flat = ExactIndex(self.items), FaissIndex.build("flat", self.items, WIDTH + 1)
        self.exact = max((numpy, flat), key=lambda each: queries_a_second(each, self.asked))
        self.config = {
            "items": num_items,
            "width": WIDTH + 1,
            "batch": BATCH,
            "list": K,
            "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
            "exact": "numpy" if self.exact is numpy else "faiss",
        }

    def show(self, name: str, values: list[float], unit: str, **judged: Any) -> None:
        """The line of one figure."""
        report(f"index_{name}", values, unit=unit, small=self.small, config=self.config, **judged)

    def partial(self, kind: LocalKind) -> None:
        """An index that looks at a part of the vectors, in rounds with exact search."""
        built: list[LocalIndex] = []
        named: dict[str, Any] = {"model_hash": "bench", "queries": self.users}
        build_s = seconds_of(
            lambda: built.append(LocalIndex.build(kind, self.item_ids, self.items, **named))
        )
        (index,) = built
        rows = _Rows(index)
        exact_rates, rates = [], []
        for _ in range(self.rounds):
            exact_rates.append(queries_a_second(self.exact, self.asked))
            rates.append(queries_a_second(rows, self.asked))
        speeds = [ours / theirs for ours, theirs in zip(rates, exact_rates, strict=True)]
        recalls = {k: recall_at_k(rows, self.items, self.asked, k) for k in (10, 100)}
        with tempfile.TemporaryDirectory() as name:
            index.save(Path(name) / "index")
            held_bytes = GB * held_elsewhere_gb(Path(name) / "index")
        before, self.config = self.config, self.config | index.parameters()
        self.show(f"{kind}_recall_100", [recalls[100]], "share", bar=0.97, better="higher")
        self.show(f"{kind}_recall_10", [recalls[10]], "share", bar=0.95, better="higher")
        self.show(f"{kind}_speed", speeds, "ratio", bar=5.0, better="higher")
        self.show(f"{kind}_rate", rates, "queries/s")
        self.show("exact_rate", exact_rates, "queries/s")
        self.show(f"{kind}_build", [build_s], "s", bar=300.0)
        self.show(f"{kind}_memory", [held_bytes / self.items.nbytes], "ratio", bar=1.6)
        self.config = before

    def int8(self) -> None:
        """Codes alone, without exact scores behind them."""
        index = Int8Index.build(self.items, WIDTH + 1)
        size_bytes = index.vectors.codes.nbytes + index.vectors.scales.nbytes
        recall = recall_at_k(index, self.items, self.asked, 10)
        rates = [queries_a_second(index, self.asked) for _ in range(self.rounds)]
        self.show("int8_size", [size_bytes / self.items.nbytes], "ratio", bar=0.26)
        self.show("int8_recall_10", [recall], "share", bar=0.95, better="higher")
        self.show("int8_rate", rates, "queries/s")


def main() -> None:
    if sys.argv[1:2] == [HELD]:
        print(held_gb(Path(sys.argv[2])))
        return
    given = arguments(__doc__)
    bench = Bench(ITEMS // 50 if given.small else ITEMS, given.small, given.rounds)
    bench.partial("ivf")
    bench.int8()


if __name__ == "__main__":
    main()
