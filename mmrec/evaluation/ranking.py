"""Ranks targets among all candidates in tiles, so that no users x items matrix ever exists.

    for a tile of users:    score tiles of items, seen and unavailable items to -inf
                            take each target's own score out of the tile it lies in
                            count what scores higher or the same; merge a running top K

The rank of a target is its place in the list of all candidates but those. Ties carry their expected
rank under a random order of the tied: with g candidates above, and m targets of the case among
`equal + 1` tied candidates, the i-th of the m has the rank

    g + i (equal + 2) / (m + 1)         for one target:  1 + g + equal / 2

so that a constant scorer gets the middle of the list and no two targets share a place.

Lists that put new items last (`mmrec.evaluation.new_last`) are counted as they are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.evaluation.metrics import FloatArray
from mmrec.evaluation.new_last import NewLast, order_lists, ranks_new_last
from mmrec.evaluation.protocol import Cases

# Scores kept at once (256 MB): above it a tile of users is scored twice, first for its targets.
MAX_KEPT_SCORES = 2**26


class Scorer(Protocol):
    """Anything that scores candidates for cases; higher is better."""

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """Scores of some candidates.

        Args:
            case_rows: (b,) rows of the cases it was made for.
            candidate_rows: c consecutive rows of the candidates.

        Returns:
            (b, c) float32, finite, and the caller's to overwrite.
        """
        ...


@dataclass(frozen=True)
class VectorScorer:
    """The inner product of a vector a case and a vector a candidate.

    Attributes:
        user_vectors: (U, D), one a case.
        item_vectors: (C, D), one a candidate.
    """

    user_vectors: Tensor
    item_vectors: Tensor

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        """(b, c) inner products in float32."""
        rows = torch.from_numpy(case_rows).to(self.user_vectors.device)
        return self.user_vectors[rows].float() @ self.item_vectors[candidate_rows].float().T


@dataclass(frozen=True)
class Ranking:
    """Where one scorer puts the targets, and what it shows.

    Attributes:
        rank: (T,) expected 1-based rank of each of `cases.targets.values`.
        rank_among_cold: (T,) the same among cold candidates only; nan where the case is not cold.
        top_items: (U, K) item_index as they are listed, ties in the order of the candidates; -1
            where fewer candidates are left.
        top_scores: (U, K) their scores; -inf where there is no item.
    """

    rank: FloatArray
    rank_among_cold: FloatArray
    top_items: IntArray
    top_scores: np.ndarray[tuple[int, int], np.dtype[np.float32]]


@dataclass
class _TargetCounts:
    """Counts that grow from tile to tile; one entry a target of the tile of users."""

    row: Tensor
    column: Tensor
    slot: Tensor
    score: Tensor
    greater: Tensor
    equal: Tensor

    def from_zero(self) -> _TargetCounts:
        """The same targets with nothing counted yet."""
        greater, equal = torch.zeros_like(self.greater), torch.zeros_like(self.equal)
        return replace(self, greater=greater, equal=equal)

    def add(self, scores: Tensor, columns: Tensor, wanted: Tensor) -> None:
        """Counts a tile: scores (b, c) of candidates `columns` (c,), for `wanted` targets (t,)."""
        for slot in range(int(self.slot.max()) + 1 if len(self.slot) else 0):
            chosen = torch.nonzero(wanted & (self.slot == slot)).squeeze(1)
            if not len(chosen):
                continue
            rows = self.row[chosen]
            own = scores if len(rows) == len(scores) else scores[rows]
            threshold = self.score[chosen, None]
            greater = _count(torch.gt, own, threshold)
            self.greater[chosen] += greater
            self.equal[chosen] += _count(torch.ge, own, threshold) - greater
        # A target is no rival of itself. It is taken out by comparing its own column again, not by
        # subtracting one: the result holds even if a kernel rounds differently on a second call.
        place = torch.searchsorted(columns, self.column).clamp(max=len(columns) - 1)
        inside = torch.nonzero(wanted & (columns[place] == self.column)).squeeze(1)
        itself = scores[self.row[inside], place[inside]]
        self.greater[inside] -= (itself > self.score[inside]).long()
        self.equal[inside] -= (itself == self.score[inside]).long()

    def add_some(self, scores: Tensor, columns: Tensor, some: Tensor, wanted: Tensor) -> None:
        """Counts those columns of a tile that lie in `some` (n,), ascending candidate rows."""
        inside = some[(some >= columns[0]) & (some <= columns[-1])]
        if len(inside):
            self.add(scores[:, inside - columns[0]], inside, wanted)


def rank_cases(
    scorer: Scorer,
    cases: Cases,
    *,
    top_k: int = 50,
    user_tile: int | None = None,
    item_tile: int = 65_536,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """Ranks the targets of all cases among all candidates.

    Args:
        scorer: made for these cases and candidates; lists of a `NewLast` are as it says.
        cases: U cases with T targets, C candidates; their seen items are left out of every list.
        top_k: K, how many items a list shows.
        user_tile: cases scored together; None: as many (64 to 1,024) as the kept scores allow.
        item_tile: candidates scored together.
        device: where scores are compared.
        progress: called with (cases done, cases) after each tile.

    Raises:
        ValueError: a score is not finite, or a target is no candidate.
    """
    num_cases, num_candidates = len(cases), len(cases.candidates)
    if user_tile is None:
        user_tile = min(1024, max(64, MAX_KEPT_SCORES // max(num_candidates, 1)))
    column_of = np.full(cases.num_items, -1, dtype=np.int64)
    column_of[cases.candidates] = np.arange(num_candidates)
    target_column = column_of[cases.targets.values]
    if (target_column < 0).any():
        lost = int(cases.targets.values[target_column < 0][0])
        raise ValueError(f"item_index {lost} is a target but no candidate")
    cold_columns = torch.from_numpy(np.flatnonzero(cases.candidate_is_cold)).to(device)
    case_is_cold = np.array([name == "cold" for name in cases.slice], dtype=bool)

    listed = scorer if isinstance(scorer, NewLast) else None
    depth = top_k if listed is None else max(top_k, listed.places)
    new_columns = None
    if listed is not None:
        new_columns = torch.from_numpy(np.flatnonzero(listed.is_new)).to(device)

    num_targets = len(target_column)
    score = np.empty(num_targets, dtype=np.float32)
    counts = {name: np.zeros((2, num_targets), dtype=np.int64) for name in ("all", "cold", "new")}
    top_items = np.full((num_cases, depth), -1, dtype=np.int64)
    top_scores = np.full((num_cases, depth), -np.inf, dtype=np.float32)
    for start in range(0, num_cases, user_tile):
        rows = np.arange(start, min(start + user_tile, num_cases))
        seen = cases.seen.take(rows)
        seen_column = column_of[seen.values]
        blocks = _Blocks(scorer, cases, rows, seen.row_of_value, seen_column, item_tile, device)
        first, last = cases.targets.offsets[[rows[0], rows[-1] + 1]]
        targets = cases.targets.take(rows)
        every = _targets_of(
            blocks, targets.row_of_value, target_column[first:last], targets.offsets
        )
        cold, new = every.from_zero(), every.from_zero()
        is_cold = torch.from_numpy(case_is_cold[rows]).to(device)[every.row]
        best = torch.full((len(rows), 0), -torch.inf, device=device)
        best_columns = torch.empty((len(rows), 0), dtype=torch.int64, device=device)
        for tile in range(len(blocks.tiles)):
            scores, columns = blocks.read(tile), blocks.columns(tile)
            every.add(scores, columns, torch.ones_like(is_cold))
            if is_cold.any():
                cold.add_some(scores, columns, cold_columns, is_cold)
            if new_columns is not None:
                new.add_some(scores, columns, new_columns, torch.ones_like(is_cold))
            best, best_columns = _merge_top(best, best_columns, scores, int(columns[0]), depth)
        if best.isnan().any():
            raise ValueError("the scorer gave scores that are not a number")
        score[first:last] = every.score.cpu().numpy()
        for name, counted in (("all", every), ("cold", cold), ("new", new)):
            counts[name][0, first:last] = counted.greater.cpu().numpy()
            counts[name][1, first:last] = counted.equal.cpu().numpy()
        width = best.shape[1]
        shown = cases.candidates[best_columns.cpu().numpy()]
        top_scores[rows, :width] = best.cpu().numpy()
        top_items[rows, :width] = np.where(np.isneginf(top_scores[rows, :width]), -1, shown)
        if progress is not None:
            progress(int(rows[-1]) + 1, num_cases)

    def rank_of(counted: IntArray) -> FloatArray:
        return expected_rank(counted, score, cases.targets.offsets)

    of_cold_case = np.repeat(case_is_cold, cases.targets.lengths)
    rank = rank_of(counts["all"])
    if listed is not None:
        is_new = np.zeros(cases.num_items, dtype=bool)
        is_new[cases.candidates] = listed.is_new
        order, num_known = order_lists(top_items, is_new, listed.places)
        rank = ranks_new_last(
            rank,
            among_new=rank_of(counts["new"]),
            among_known=rank_of(counts["all"] - counts["new"]),
            is_new=is_new[cases.targets.values],
            num_known=np.repeat(num_known, cases.targets.lengths),
            places=listed.places,
        )
        top_items = np.take_along_axis(top_items, order, axis=1)[:, :top_k]
        top_scores = np.take_along_axis(top_scores, order, axis=1)[:, :top_k]
    return Ranking(
        rank=rank,
        rank_among_cold=np.where(of_cold_case, rank_of(counts["cold"]), np.nan),
        top_items=top_items,
        top_scores=top_scores,
    )


def expected_rank(
    counts: IntArray,
    scores: np.ndarray[tuple[int], np.dtype[np.float32]],
    offsets: IntArray,
) -> FloatArray:
    """Expected ranks of targets under a random order of ties; see the module for the formula.

    Args:
        counts: (2, T) how many other candidates score higher, and how many the same.
        scores: (T,) of the targets.
        offsets: (U + 1,) where the targets of each case start.

    Returns:
        (T,) float64, 1-based.
    """
    greater, equal = counts
    case = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((scores, case))
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = (np.diff(case[order]) != 0) | (np.diff(scores[order]) != 0)
    group = np.cumsum(starts) - 1
    size = np.bincount(group)
    ordinal = np.arange(len(order)) - np.flatnonzero(starts)[group] + 1
    rank = np.empty(len(order))
    rank[order] = greater[order] + ordinal * (equal[order] + 2) / (size[group] + 1)
    return rank


class _Blocks:
    """The masked scores of one tile of users, tile by tile of candidates; kept if they fit."""

    def __init__(
        self,
        scorer: Scorer,
        cases: Cases,
        rows: IntArray,
        seen_row: IntArray,
        seen_column: IntArray,
        item_tile: int,
        device: torch.device | str,
    ) -> None:
        self.scorer, self.cases, self.rows, self.device = scorer, cases, rows, device
        num_candidates = len(cases.candidates)
        self.tiles = [
            slice(start, min(start + item_tile, num_candidates))
            for start in range(0, num_candidates, item_tile)
        ]
        order = np.argsort(seen_column, kind="stable")
        self.seen_row, self.seen_column = seen_row[order], seen_column[order]
        self.fits = len(rows) * num_candidates <= MAX_KEPT_SCORES
        self.kept: dict[int, Tensor] = {}

    def columns(self, tile: int) -> Tensor:
        """(c,) candidate rows of a tile."""
        return torch.arange(self.tiles[tile].start, self.tiles[tile].stop, device=self.device)

    def read(self, tile: int) -> Tensor:
        """(b, c) scores of a tile, -inf where the item was seen or could not be shown."""
        if tile in self.kept:
            return self.kept[tile]
        columns = self.tiles[tile]
        scores = self.scorer.score(self.rows, columns).to(self.device, torch.float32)
        low, high = np.searchsorted(self.seen_column, [columns.start, columns.stop])
        row = torch.from_numpy(self.seen_row[low:high]).to(self.device)
        column = torch.from_numpy(self.seen_column[low:high] - columns.start).to(self.device)
        scores[row, column] = -torch.inf
        unavailable = self.cases.unavailable(self.rows, columns.start, columns.stop)
        if unavailable is not None:
            scores[torch.from_numpy(unavailable).to(self.device)] = -torch.inf
        if self.fits:
            self.kept[tile] = scores
        return scores


def _targets_of(
    blocks: _Blocks, row: IntArray, column: IntArray, offsets: IntArray
) -> _TargetCounts:
    """Takes each target's score out of the tile it lies in, so that it is the number counted."""
    slot = np.arange(len(row)) - offsets[row]
    score = torch.full((len(row),), torch.nan, device=blocks.device)
    for tile, columns in enumerate(blocks.tiles):
        inside = np.flatnonzero((column >= columns.start) & (column < columns.stop))
        if len(inside):
            scores = blocks.read(tile)
            at = torch.from_numpy(inside).to(blocks.device)
            score[at] = scores[row[inside], column[inside] - columns.start]
    if not score.isfinite().all():
        raise ValueError("a target's score is not finite, or the target is among the seen items")
    places = [torch.from_numpy(array).to(blocks.device) for array in (row, column, slot)]
    zeros = torch.zeros_like(places[0])
    return _TargetCounts(places[0], places[1], places[2], score, zeros, zeros.clone())


def _count(compare: Callable[..., Tensor], scores: Tensor, threshold: Tensor) -> Tensor:
    """(b,) int64, how many of (b, c) scores stand so to (b, 1) thresholds.

    Through float32, exact up to 2^24 columns: a bool mask and its sum take ten times as long.
    """
    return compare(scores, threshold, out=torch.empty_like(scores)).sum(1).long()


def _merge_top(
    best: Tensor, best_columns: Tensor, scores: Tensor, first_column: int, k: int
) -> tuple[Tensor, Tensor]:
    """Merges the running best (b, <=k) with a tile (b, c); ties keep the order of candidates."""
    columns = _top_columns(scores, k)
    values = torch.cat([best, scores.gather(1, columns)], dim=1)
    joined = torch.cat([best_columns, columns + first_column], dim=1)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values[:, :k], joined.gather(1, order)[:, :k]


def _top_columns(scores: Tensor, k: int) -> Tensor:
    """(b, min(k, c)) columns of the highest scores, ascending; of ties at the edge the first."""
    k = min(k, scores.shape[1])
    values, columns = scores.topk(k, dim=1)
    columns = columns.sort(dim=1).values
    # topk takes any of the tied: which ones would depend on how the candidates are tiled
    edge = values[:, -1:]
    tied = torch.nonzero(_count(torch.ge, scores, edge) > k).squeeze(1)
    if len(tied):
        own, edge = scores[tied], edge[tied]
        above, at_edge = own > edge, own == edge
        room = k - above.sum(1, keepdim=True)
        chosen = above | (at_edge & (at_edge.cumsum(1) <= room))
        columns[tied] = torch.nonzero(chosen)[:, 1].view(len(tied), k)
    return columns
