"""Indexes of faiss: flat, HNSW, IVF and eight bits a number; one file each that any faiss reads.

flat   exact, fp32                                      1 x the vectors
int8   exact over scalar-quantised vectors              .28 x
ivf    lists around centroids, scalar-quantised         .29 x; needs enough vectors to train
hnsw   a graph of neighbours, scalar-quantised          .6 x; the slowest to build
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from mmrec.retrieval.indexes.exact import BLOCK_ROWS
from mmrec.retrieval.indexes.rows import BoolArray, FloatArray, IntArray, Vectors

FaissKind = Literal["flat", "int8", "ivf", "hnsw"]
FAISS_KINDS: tuple[FaissKind, ...] = ("flat", "int8", "ivf", "hnsw")
FAISS_FILE = "index.faiss"
# Of fewer vectors an exact scan in batches is as quick as looking at a part.
MIN_ROWS = 20_000

# Lists of an IVF index: 8 sqrt(N). Of a million vectors 8,000 lists find .962 of the best 100 where
# 4,000 find .948 at the same speed; more take long to train.
LISTS_PER_ROOT = 8
# Vectors a list that k-means looks at: faiss warns below 39, and more than 64 gains nothing.
TRAINED_PER_LIST = 50
# Neighbours of a node of the graph; 32 would double the links (a quarter of the vectors) for 1 %.
HNSW_LINKS = 16
HNSW_BUILD_EFFORT = 80
# The scalar quantiser is quicker where the dimension is a multiple of 16: 1.4 times at 129 numbers.
LANES = 16
SEED = 0


def lists_for(num_rows: int) -> int:
    """Lists around centroids for N vectors."""
    return max(1, min(LISTS_PER_ROOT * math.isqrt(num_rows), num_rows // TRAINED_PER_LIST))


class FaissIndex:
    """An index of faiss, in memory while it is used and one file on disk.

    Args:
        index: any index of faiss over inner products.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, kind: FaissKind, vectors: Vectors, width: int, *, kept: float = 1.0) -> Self:
        """An index of a kind, trained on a sample where it has something to learn.

        Args:
            kind: of `FAISS_KINDS`.
            vectors: (N, D), at least one.
            width: D.
            kept: share of the vectors' squared lengths that is compared, of all but flat: trained
                vectors lie in far fewer directions than they have numbers, and the least of these
                cost time for nothing. Below 1 scores are a little off.
        """
        import faiss

        num_rows = len(vectors)
        index = (
            cls(faiss.IndexFlatIP(width)) if kind == "flat" else cls._trained(kind, vectors, kept)
        )
        for start in range(0, num_rows, BLOCK_ROWS):  # what pads vectors copies them
            index.add(vectors[start : start + BLOCK_ROWS])
        return index

    @classmethod
    def _trained(cls, kind: FaissKind, vectors: Vectors, kept: float) -> Self:
        """An index without vectors that has learnt from a sample of them."""
        faiss = _import_faiss()
        num_rows, num_lists = len(vectors), lists_for(len(vectors))
        num_trained = min(num_rows, TRAINED_PER_LIST * max(num_lists, 1_000))
        places = np.random.default_rng(SEED).choice(num_rows, num_trained, replace=False)
        sample = _contiguous(vectors[np.sort(places)])
        directions = _directions(sample, kept)
        turn = faiss.LinearTransform(sample.shape[1], len(directions), False)
        faiss.copy_array_to_vector(directions.reshape(-1), turn.A)
        turn.is_trained = True
        factory = {"int8": "SQ8", "ivf": f"IVF{num_lists},SQ8", "hnsw": f"HNSW{HNSW_LINKS},SQ8"}
        core = faiss.index_factory(len(directions), factory[kind], faiss.METRIC_INNER_PRODUCT)
        if kind == "ivf":
            core.cp.min_points_per_centroid = 1
        if kind == "hnsw":
            core.hnsw.efConstruction = HNSW_BUILD_EFFORT
        index = faiss.IndexPreTransform(turn, core)
        index.train(sample)
        return cls(index)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Opens what `write` wrote, or any index of inner products that faiss wrote."""
        import faiss

        return cls(faiss.read_index(str(path)))

    @property
    def kind(self) -> str:
        """Of `FAISS_KINDS`."""
        core = self._core
        if hasattr(core, "nprobe"):
            return "ivf"
        if hasattr(core, "hnsw"):
            return "hnsw"
        return "int8" if hasattr(core, "sq") else "flat"

    @property
    def effort(self) -> int:
        """Lists that a search looks into (ivf), or nodes that it keeps in view (hnsw)."""
        core = self._core
        if self.kind == "ivf":
            return int(core.nprobe)
        return int(core.hnsw.efSearch) if self.kind == "hnsw" else 1

    @effort.setter
    def effort(self, effort: int) -> None:
        if self.kind == "ivf":
            self._core.nprobe = effort
        elif self.kind == "hnsw":
            self._core.hnsw.efSearch = effort

    @property
    def efforts(self) -> Sequence[int]:
        """Values to try, from the quickest: four to each doubling."""
        steps = sorted({round(2 ** (quarter / 4)) for quarter in range(4 * 12)})
        if self.kind == "ivf":
            num_lists = int(self._core.nlist)
            return [*(step for step in steps if step < num_lists), num_lists]
        return [step for step in steps if step >= 16] if self.kind == "hnsw" else [1]

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: FloatArray) -> None:
        """See `RowIndex.add`."""
        self._index.add(_contiguous(vectors))

    def search(
        self, queries: FloatArray, k: int, allowed: BoolArray | None = None
    ) -> tuple[FloatArray, IntArray]:
        """See `RowIndex.search`; of flat and int8 all that is allowed is compared."""
        scores, rows = self._index.search(
            _contiguous(queries), k, params=self._search_parameters(k, allowed)
        )
        return scores, rows

    def parameters(self) -> dict[str, Any]:
        """See `RowIndex.parameters`."""
        core = self._core
        if self.kind == "ivf":
            return {
                "directions": int(core.d),
                "lists": int(core.nlist),
                "lists_searched": self.effort,
            }
        if self.kind == "hnsw":
            return {"links": HNSW_LINKS, "nodes_in_view": self.effort}
        return {}

    def write(self, folder: Path) -> None:
        """See `RowIndex.write`."""
        self.write_file(folder / FAISS_FILE)

    def write_file(self, path: Path) -> None:
        """Writes the index as one file."""
        import faiss

        faiss.write_index(self._index, str(path))

    @property
    def _core(self) -> Any:
        """The index behind the one that pads vectors."""
        import faiss

        return faiss.downcast_index(getattr(self._index, "index", self._index))

    def _search_parameters(self, k: int, allowed: BoolArray | None) -> Any:
        faiss = _import_faiss()
        kind = self.kind
        if allowed is None and kind != "hnsw":
            return None
        options: dict[str, Any] = {}
        share = 1.0
        if allowed is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            share = max(float(allowed.mean()), 1 / max(len(self), 1))
        # The best of what is allowed lie as far away as the best K / share of all: look farther.
        if kind == "ivf":
            num_lists = int(self._core.nlist)
            nprobe = min(num_lists, math.ceil(self.effort / share))
            inner = faiss.SearchParametersIVF(nprobe=nprobe, **options)
        elif kind == "hnsw":
            effort = math.ceil(max(self.effort, k) / share)
            inner = faiss.SearchParametersHNSW(efSearch=effort, **options)
        else:
            inner = faiss.SearchParameters(**options)
        if isinstance(self._index, faiss.IndexPreTransform):
            return faiss.SearchParametersPreTransform(index_params=inner)
        return inner


def _directions(sample: FloatArray, kept: float) -> FloatArray:
    """(d, D) orthonormal rows: the directions in which vectors are longest, and zeros to pad.

    Products of vectors that are turned so are the same but for what the directions left out hold.
    The last number, popularity, is never left out: it is small, but every user asks for it with 1.

    Args:
        sample: (n, D).
        kept: share of the squared lengths; 1 turns nothing and leaves nothing out.
    """
    width = sample.shape[1]
    chosen = np.eye(width, dtype=np.float32)
    if kept < 1:
        embeddings = sample[:, :-1]
        lengths, axes = np.linalg.eigh(embeddings.T @ embeddings)
        shares = np.cumsum(lengths[::-1]) / max(float(lengths.sum()), 1e-12)
        num_needed = int(np.count_nonzero(shares < kept)) + 2  # one more, and popularity
        longest = axes.T[::-1][: math.ceil(num_needed / LANES) * LANES - 1]
        chosen = np.zeros((len(longest) + 1, width), np.float32)
        chosen[:-1, :-1] = longest
        chosen[-1, -1] = 1
    padded = math.ceil(len(chosen) / LANES) * LANES
    return np.concatenate([chosen, np.zeros((padded - len(chosen), width), np.float32)])


def _contiguous(vectors: FloatArray) -> FloatArray:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _import_faiss() -> Any:
    """faiss, whose stubs lack part of what it has."""
    import faiss

    return faiss
