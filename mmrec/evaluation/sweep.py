"""Cold against warm for any scorer: one offset for items without events, swept over its range.

    scores of the cases ─► offsets at which new items enter the lists ─► ranks at each of them

Our offset is chosen once and kept (`mmrec.training.calibrate`). Baselines have none: a figure of
theirs for new items says little until one is added to them too, in the units of their own scores.
All offsets are looked at in one pass over the scores: the order within the new items and within the
others never changes, so a rank is a sum of two counts in sorted rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mmrec.data.ragged import IntArray
from mmrec.evaluation.evaluate import ranks_of
from mmrec.evaluation.metrics import FloatArray, metrics_from_ranks
from mmrec.evaluation.new_last import NewLast, ranks_new_last
from mmrec.evaluation.protocol import BoolArray, Cases
from mmrec.evaluation.ranking import Scorer, expected_rank
from mmrec.evaluation.scores import masked_scores

NUM_QUANTILES = 13
SHOWN = 10  # a new item matters once it is among the first ten
PROBED_CASES = 512
WARM_COSTS = (0.02, 0.05, 0.1)
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sweep:
    """Figures of one model at each offset, ascending; 0 is the model as it is.

    Attributes:
        model: whose scores.
        offset: added to every item without training events, in the model's own score.
        warm_ndcg: NDCG@10 of warm targets at each offset.
        cold_ndcg: NDCG@10 of cold targets among all candidates.
        warm_hr: HR@10 of warm targets.
        cold_hr: HR@10 of cold targets.
    """

    model: str
    offset: list[float]
    warm_ndcg: list[float]
    cold_ndcg: list[float]
    warm_hr: list[float]
    cold_hr: list[float]

    def best_within(self, warm_cost: float) -> int:
        """Place of the best cold NDCG@10 that loses at most a share of the best warm NDCG@10."""
        least = (1 - warm_cost) * max(self.warm_ndcg)
        allowed = [row for row, warm in enumerate(self.warm_ndcg) if warm >= least]
        return max(allowed, key=lambda row: (self.cold_ndcg[row], -abs(self.offset[row])))

    def as_it_is(self) -> int:
        """Place of offset 0."""
        return min(range(len(self.offset)), key=lambda row: abs(self.offset[row]))

    def offset_at(self, warm_cost: float) -> float:
        """Largest offset that loses at most a share of the best warm NDCG@10.

        On the straight lines between the points of the sweep; the last point where none loses more.
        """
        best = int(np.argmax(self.warm_ndcg))
        least = (1 - warm_cost) * self.warm_ndcg[best]
        for place in range(best + 1, len(self.offset)):
            before, after = self.warm_ndcg[place - 1], self.warm_ndcg[place]
            if after < least:
                low, high = self.offset[place - 1 : place + 1]
                return low + (high - low) * (before - least) / (before - after)
        return self.offset[-1]


@dataclass(frozen=True)
class AtCost:
    """Test figures of one model, with the offset that costs so much of warm NDCG@10 on validation.

    Attributes:
        model: whose scores.
        warm_cost: share of the best warm NDCG@10 on validation.
        offset: chosen there.
        warm_ndcg: NDCG@10 of warm test targets.
        cold_ndcg: NDCG@10 of cold test targets among all candidates.
        cold_hr: HR@10 of the same.
    """

    model: str
    warm_cost: float
    offset: float
    warm_ndcg: float
    cold_ndcg: float
    cold_hr: float


def at_costs(
    sweeps: Sequence[Sweep],
    scorers: Mapping[str, Scorer],
    cases: Cases,
    popularity: IntArray,
    *,
    costs: Sequence[float] = WARM_COSTS,
    device: torch.device | str = "cpu",
) -> list[AtCost]:
    """What each model's offsets of validation give on other cases.

    Args:
        sweeps: of validation.
        scorers: the same models, made for the cases.
        cases: of the test, with warm and cold targets; else nothing is returned.
        popularity: (N,) training events of each item.
        costs: shares of warm NDCG@10.
        device: where scores are made.

    Returns:
        A row a model and cost; none of models that no offset makes find a new item.
    """
    unseen = popularity[cases.candidates] == 0
    if not {"warm", "cold"} <= set(cases.slice):
        return []
    rows = []
    for sweep in sweeps:
        if not any(sweep.cold_hr):
            continue
        offsets = np.array([sweep.offset_at(cost) for cost in costs])
        ranks = ranks_at_offsets(scorers[sweep.model], cases, unseen, offsets, device=device)
        figures = _figures(ranks, cases)
        rows += [
            AtCost(
                sweep.model,
                cost,
                float(offsets[place]),
                warm_ndcg=figures["warm_ndcg"][place],
                cold_ndcg=figures["cold_ndcg"][place],
                cold_hr=figures["cold_hr"][place],
            )
            for place, cost in enumerate(costs)
        ]
    return rows


def sweep_models(
    scorers: Mapping[str, Scorer],
    cases: Cases,
    popularity: IntArray,
    *,
    device: torch.device | str = "cpu",
) -> list[Sweep]:
    """Sweeps every scorer; nothing where the cases lack warm or cold targets.

    Args:
        scorers: by name, made for these cases.
        cases: of validation, where offsets are chosen.
        popularity: (N,) training events of each item.
        device: where scores are made.
    """
    unseen = popularity[cases.candidates] == 0
    if not {"warm", "cold"} <= set(cases.slice) or unseen.all() or not unseen.any():
        return []
    return [
        sweep_offsets(name, scorer, cases, unseen, device=device)
        for name, scorer in scorers.items()
    ]


def sweep_offsets(
    name: str,
    scorer: Scorer,
    cases: Cases,
    unseen: BoolArray,
    *,
    device: torch.device | str = "cpu",
) -> Sweep:
    """Ranks the targets at every useful offset.

    Args:
        name: of the scorer.
        scorer: made for the cases.
        cases: with warm and cold targets.
        unseen: (C,) True = the candidate has no training event: it gets the offset.
        device: where scores are made.
    """
    offsets = useful_offsets(scorer, cases, unseen, device=device)
    ranks = ranks_at_offsets(scorer, cases, unseen, offsets, device=device)
    return Sweep(name, offsets.tolist(), **_figures(ranks, cases))


def _figures(ranks: FloatArray, cases: Cases) -> dict[str, list[float]]:
    """The lists of a Sweep from the ranks (O, T) at each offset."""
    figures: dict[str, list[float]] = {}
    for slice_name in ("warm", "cold"):
        rows = np.flatnonzero(np.array(cases.slice, dtype=object) == slice_name)
        metrics = []
        for at_offset in ranks:
            own, case_offsets = ranks_of(at_offset, cases.targets, rows)
            metrics.append(metrics_from_ranks(own, case_offsets, cases.user_index[rows], ks=(10,)))
        for metric in ("ndcg", "hr"):
            figures[f"{slice_name}_{metric}"] = [each[f"{metric}@10"] for each in metrics]
    return figures


def useful_offsets(
    scorer: Scorer, cases: Cases, unseen: BoolArray, *, device: torch.device | str = "cpu"
) -> FloatArray:
    """Offsets from where the first new item enters a list to where lists hold nothing else.

    For each case, the gap from the best new item to the tenth of the others is where new items
    enter, that from the tenth new item to the best of the others where they fill the list. The
    offsets are quantiles of both over cases drawn at random, so that scores of any unit are swept
    where something happens, and 0.

    Returns:
        (O,) ascending, without repeats.
    """
    random = np.random.default_rng(0)
    chosen = np.sort(random.permutation(len(cases))[:PROBED_CASES])
    gaps: list[Float32Array] = []
    for _, scores in masked_scores(_Some(scorer, chosen), cases.take(chosen), device=device):
        new, others = _sorted_parts(scores.cpu().numpy(), unseen)
        depth_new, depth = min(SHOWN, new.shape[1]), min(SHOWN, others.shape[1])
        with np.errstate(invalid="ignore"):  # -inf less -inf, where most was seen: left out below
            gaps.append(others[:, -depth] - new[:, -1])
            gaps.append(others[:, -1] - new[:, -depth_new])
    entering, filling = np.concatenate(gaps[::2]), np.concatenate(gaps[1::2])
    places = np.linspace(0, 1, NUM_QUANTILES)
    offsets = [
        np.quantile(gap[np.isfinite(gap)].astype(np.float64), places)
        for gap in (entering, filling)
        if np.isfinite(gap).any()
    ]
    return np.unique(np.concatenate([*offsets, np.zeros(1)]))


def ranks_at_offsets(
    scorer: Scorer,
    cases: Cases,
    unseen: BoolArray,
    offsets: FloatArray,
    *,
    device: torch.device | str = "cpu",
) -> FloatArray:
    """(O, T) expected ranks of all targets at each offset, where a `NewLast` lists them."""
    listed = scorer if isinstance(scorer, NewLast) else None
    column_of = np.full(cases.num_items, -1, dtype=np.int64)
    column_of[cases.candidates] = np.arange(len(cases.candidates))
    num_targets = len(cases.targets.values)
    counts = np.empty((len(offsets), 2, num_targets), dtype=np.int64)
    of_its_kind = np.empty((2, num_targets), dtype=np.int64)  # no offset changes these
    num_known = np.zeros((len(offsets), num_targets), dtype=np.int64)
    own_score = np.empty(num_targets, dtype=np.float32)
    is_new = unseen[column_of[cases.targets.values]]
    for rows, tensor in masked_scores(scorer, cases, device=device):
        scores = tensor.cpu().numpy()
        first, last = cases.targets.offsets[[rows[0], rows[-1] + 1]]
        targets = cases.targets.take(rows)
        own = scores[targets.row_of_value, column_of[targets.values]]
        own_score[first:last] = own
        new, others = _sorted_parts(scores, unseen)
        # as the offset grows, others sink beneath a new target and new items rise above another
        sign = np.where(is_new[first:last], 1.0, -1.0)
        moved = own[:, None] + sign[:, None] * offsets
        same = own[:, None]
        of_new = is_new[first:last, None]
        row = targets.row_of_value
        among_new = _counts(new[row], np.where(of_new, same, moved))
        among_others = _counts(others[row], np.where(of_new, moved, same))
        total = among_new + among_others
        total[1] -= 1  # a target is no rival of itself
        counts[:, :, first:last] = total.transpose(2, 0, 1)
        if listed is not None:
            of_its_kind[:, first:last] = np.where(of_new, among_new, among_others)[:, :, 0]
            of_its_kind[1, first:last] -= 1
            num_known[:, first:last] = _known_ahead(new, others, offsets, listed.places)[:, row]
    ranks = np.stack(
        [
            expected_rank(
                at_offset,
                (own_score + offset * is_new).astype(np.float32),
                cases.targets.offsets,
            )
            for at_offset, offset in zip(counts, offsets, strict=True)
        ]
    )
    if listed is None:
        return ranks
    among = expected_rank(of_its_kind, own_score, cases.targets.offsets)
    return ranks_new_last(
        ranks,
        among_new=among,
        among_known=among,
        is_new=is_new,
        num_known=num_known,
        places=listed.places,
    )


def _known_ahead(
    new: Float32Array, others: Float32Array, offsets: FloatArray, places: int
) -> IntArray:
    """(O, b) how many of the first places the others hold at each offset.

    They hold m at least where their m-th best is not below the best new item but (places - m), so
    each m has an offset above which it is lost.
    """
    best_others = others[:, ::-1][:, :places]
    lost_at = np.full((len(new), places), -np.inf)
    for m in range(1, best_others.shape[1] + 1):
        rival = places - m  # from 0, of the new ones best first
        own = best_others[:, m - 1].astype(np.float64)
        bar = new[:, -1 - rival] if rival < new.shape[1] else np.full(len(new), -np.inf)
        gap = np.full(len(new), np.inf)
        np.subtract(own, bar, out=gap, where=np.isfinite(bar))
        lost_at[:, m - 1] = np.where(np.isfinite(own), gap, -np.inf)
    return (lost_at[None] >= offsets[:, None, None]).sum(axis=2)


@dataclass(frozen=True)
class _Some:
    """A scorer asked about some of its cases only."""

    scorer: Scorer
    rows: IntArray

    def score(self, case_rows: IntArray, candidate_rows: slice) -> torch.Tensor:
        """Scores of rows of the chosen cases."""
        return self.scorer.score(self.rows[case_rows], candidate_rows)


def _sorted_parts(scores: Float32Array, unseen: BoolArray) -> tuple[Float32Array, Float32Array]:
    """Rows of the new items' and of the others' scores, each ascending."""
    return np.sort(scores[:, unseen], axis=1), np.sort(scores[:, ~unseen], axis=1)


def _counts(ascending: Float32Array, thresholds: FloatArray) -> IntArray:
    """(2, t, O) how many of each row (t, n) lie above, and how many at, thresholds (t, O)."""
    rows = torch.from_numpy(ascending)
    asked = torch.from_numpy(np.ascontiguousarray(thresholds, dtype=np.float32))
    asked = asked.expand(len(rows), -1).contiguous()
    right = torch.searchsorted(rows, asked, right=True).numpy()
    left = torch.searchsorted(rows, asked, right=False).numpy()
    return np.stack([ascending.shape[1] - right, right - left])
