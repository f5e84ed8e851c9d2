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

# Lists of an IVF index: 4 sqrt(N), the middle of what faiss advises (4,000 of a million vectors).
LISTS_PER_ROOT = 4
# Vectors a list that k-means looks at: faiss warns below 39, and more than 64 gains nothing.
TRAINED_PER_LIST = 50
# Neighbours of a node of the graph; 32 would double the links (a quarter of the vectors) for 1 %.
HNSW_LINKS = 16
HNSW_BUILD_EFFORT = 80
# The scalar quantiser is several times faster where the dimension is a multiple of 16.
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
    def build(cls, kind: FaissKind, vectors: Vectors, width: int) -> Self:
        """An index of a kind, trained on a sample where it has something to learn.

        Args:
            kind: of `FAISS_KINDS`.
            vectors: (N, D), at least one.
            width: D.
        """
        import faiss

        num_rows = len(vectors)
        padded = math.ceil(width / LANES) * LANES
        num_lists = lists_for(num_rows)
        factory = {
            "flat": "Flat",
            "int8": f"Pad{padded},SQ8",
            "ivf": f"Pad{padded},IVF{num_lists},SQ8",
            "hnsw": f"Pad{padded},HNSW{HNSW_LINKS},SQ8",
        }[kind]
        index = cls(faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT))
        if kind == "ivf":
            index._core.cp.min_points_per_centroid = 1
        if kind == "hnsw":
            index._core.hnsw.efConstruction = HNSW_BUILD_EFFORT
        if kind != "flat":
            num_trained = min(num_rows, TRAINED_PER_LIST * max(num_lists, 1_000))
            sample = np.random.default_rng(SEED).choice(num_rows, num_trained, replace=False)
            index._index.train(_contiguous(vectors[np.sort(sample)]))
        for start in range(0, num_rows, BLOCK_ROWS):  # what pads vectors copies them
            index.add(vectors[start : start + BLOCK_ROWS])
        return index

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
        """Values to try, from the quickest: powers of two and the middles between them."""
        steps = sorted({2**power * half // 2 for power in range(12) for half in (2, 3)})
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
            return {"lists": int(core.nlist), "lists_searched": self.effort}
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


def _contiguous(vectors: FloatArray) -> FloatArray:
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _import_faiss() -> Any:
    """faiss, whose stubs lack part of what it has."""
    import faiss

    return faiss
