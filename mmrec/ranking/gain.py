"""What a ranker adds to retrieval: the same cases ranked with it and without, user by user.

Only the places of retrieval's best K change: a target that is not among them keeps its rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion.ranker import Ranker
from mmrec.data.ragged import IntArray, offsets_of
from mmrec.evaluation.evaluate import rank_metrics
from mmrec.evaluation.metrics import bootstrap_interval, case_metrics, paired_test, user_means
from mmrec.evaluation.protocol import CASE_SLICES, Cases
from mmrec.evaluation.ranking import Ranking, expected_rank
from mmrec.ranking.lists import Frozen
from mmrec.retrieval.ranker_inputs import RankerInputs
from mmrec.retrieval.ranker_outputs import tell

METRIC = "ndcg@10"
TILE = 32


@dataclass(frozen=True)
class Asked:
    """Cases with retrieval's best K of each.

    Attributes:
        cases: U of them.
        users: (U, D).
        ranking: of retrieval alone.
    """

    cases: Cases
    users: Tensor
    ranking: Ranking


def ask(frozen: Frozen, cases: Cases, k: int) -> Asked:
    """Retrieval's best K for some cases."""
    return Asked(cases, *frozen.retrieve(cases, k))


def rank_again(
    frozen: Frozen,
    inputs: RankerInputs,
    ranker: Ranker,
    asked: Asked,
    progress: Callable[[int, int], None] | None = None,
) -> Ranking:
    """The cases' ranking with the second stage.

    Args:
        frozen: the retriever.
        inputs: of its candidates.
        ranker: left in eval mode.
        asked: the cases.
        progress: called with (cases done, cases).
    """
    ranker.eval()
    tau = frozen.loaded.model.temperature.detach()
    final = asked.ranking.top_scores.copy()
    for start in range(0, len(asked.cases), TILE):
        rows = np.arange(start, min(start + TILE, len(asked.cases)))
        part = asked.cases.take(rows)
        scores = torch.from_numpy(asked.ranking.top_scores[rows]).to(asked.users.device)
        told = tell(
            ranker,
            inputs,
            asked.users[torch.from_numpy(rows).to(asked.users.device)],
            part.history,
            part.told,
            asked.ranking.top_items[rows],
            scores,
        )
        final[rows] = (scores + told[..., 0] * tau).cpu().numpy()
        if progress is not None:
            progress(int(rows[-1]) + 1, len(asked.cases))
    return reordered(asked.ranking, asked.cases, final)


def reordered(ranking: Ranking, cases: Cases, final: npt.NDArray[np.float32]) -> Ranking:
    """A ranking whose first K stand in the order of other scores.

    Args:
        ranking: of retrieval.
        cases: that it ranks.
        final: (U, K) scores of its `top_items`, -inf where there is none.
    """
    row = cases.targets.row_of_value
    at = ranking.top_items[row] == cases.targets.values[:, None]  # (T, K)
    found = at.any(1)
    own = final[row[found], at[found].argmax(1)]
    others = final[row[found]]
    greater = (others > own[:, None]).sum(1)
    equal = (others == own[:, None]).sum(1) - 1
    lengths = np.bincount(row[found], minlength=len(cases))
    rank = ranking.rank.copy()
    rank[found] = expected_rank(np.stack([greater, equal]), own, offsets_of(lengths))
    order = np.argsort(-final, axis=1, kind="stable")
    return replace(
        ranking,
        rank=rank,
        top_items=np.take_along_axis(ranking.top_items, order, 1),
        top_scores=np.take_along_axis(final, order, 1),
    )


def value_of(ranking: Ranking, cases: Cases) -> float:
    """NDCG@10, the mean over users."""
    return float(rank_metrics(ranking, cases, "all")[METRIC])


def recall(asked: Asked, rows: IntArray) -> float:
    """Share of the targets of some cases that are among retrieval's best K."""
    targets = asked.cases.targets.take(rows)
    found = asked.ranking.top_items[rows[targets.row_of_value]] == targets.values[:, None]
    return float(found.any(1).mean())


def gain(asked: Asked, ranked: Ranking) -> dict[str, dict[str, Any]]:
    """Retrieval alone and both stages, on each slice that has cases.

    Returns:
        By slice num_users, recall of the first stage at K, ndcg@10, hr@10 and mrr of `retrieval`
        and of `both`, and the difference of NDCG@10 with its 95 % bootstrap interval and the
        p-value of a paired randomisation test, both over users.
    """
    cases = asked.cases
    names = np.array(cases.slice, dtype=object)
    found: dict[str, dict[str, Any]] = {}
    for name in ("all", *CASE_SLICES):
        rows = np.flatnonzero((names == name) | (name == "all"))
        if not len(rows):
            continue
        sides = {"retrieval": asked.ranking, "both": ranked}
        of_sides = {side: rank_metrics(each, cases, name) for side, each in sides.items()}
        values = [_of_users(each, cases, rows) for each in sides.values()]
        found[name] = {
            "num_users": of_sides["both"]["num_users"],
            "recall": recall(asked, rows),
            **{
                side: {metric: each[metric] for metric in (METRIC, "hr@10", "mrr")}
                for side, each in of_sides.items()
            },
            "difference": float((values[1] - values[0]).mean()),
            "interval": list(bootstrap_interval(values[1] - values[0])),
            "p_value": paired_test(values[1], values[0], num_samples=2000),
        }
    return found


def _of_users(ranking: Ranking, cases: Cases, rows: IntArray) -> npt.NDArray[np.float64]:
    """(users,) NDCG@10 of some cases."""
    values = case_metrics(ranking.rank, cases.targets.offsets, ks=(10,))[METRIC]
    return user_means(values[rows], cases.user_index[rows])


def gain_lines(found: dict[str, dict[str, Any]], k: int) -> list[str]:
    """One line a slice for a person."""
    return [
        f"ranker, {name}: NDCG@10 {each['both'][METRIC]:.4f}, retrieval alone "
        f"{each['retrieval'][METRIC]:.4f}, difference {each['difference']:+.4f} "
        f"({each['interval'][0]:+.4f} to {each['interval'][1]:+.4f}); recall of the first stage "
        f"@{k} {each['recall']:.4f}, {each['num_users']:,} users"
        for name, each in found.items()
    ]


def outcome_lines(document: dict[str, Any]) -> list[str]:
    """What came out, in a few lines for a person."""
    verdict = (
        "lists are ranked by it from now on (--no-ranked: by retrieval alone)"
        if document["in_use"]
        else "no gain beyond chance: lists stay as retrieval gives them, unless --ranked is given"
    )
    lines = gain_lines(document["validation"], document["candidates"])
    for name, each in document["heads"].items():
        if "calibration" in each:
            error = each["calibration"]["calibration_error"]
            shown = "-" if error is None else f"{error:.4f}"
            lines.append(f"{name}: calibrated, expected calibration error {shown}")
        elif "refused" in each:
            lines.append(f"{name}: no probability: {each['refused']}")
    return [*lines, verdict]
