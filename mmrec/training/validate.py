"""One look at validation: every item encoded, every case ranked, metrics by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmrec.errors import ConfigError
from mmrec.evaluation.evaluate import SLICES, slice_metrics
from mmrec.evaluation.ranking import Ranking, VectorScorer, rank_cases
from mmrec.vectors import content_for_users, item_vectors, score_vectors, user_vectors

if TYPE_CHECKING:
    from mmrec.build import Assembly
    from mmrec.evaluation.protocol import Cases
    from mmrec.model import RecommenderModel


@dataclass(frozen=True)
class Validation:
    """What one look gives.

    metrics: slice -> metric -> value; None for a slice without targets.
    content: (N, D) content of every item, as `content_for_users` completes it; None for a model of
        ids.
    users: (U, D + 1) and items: (C, D + 1), whose products are the scores.
    """

    metrics: dict[str, dict[str, float] | None]
    content: Tensor | None
    users: Tensor
    items: Tensor

    def line(self) -> str:
        """One line for a person: HR@10 and NDCG@10 of each slice."""
        return ", ".join(
            f"{name} hr@10 {values['hr@10']:.4f} ndcg@10 {values['ndcg@10']:.4f}"
            for name, values in self.metrics.items()
            if values
        )


def check_stop_on(stop_on: str, cases: Cases) -> None:
    """Refuses to train towards slices that the validation cases lack, before the first step.

    Args:
        stop_on: as `training.stop_on`, names joined by `+`.
        cases: of validation.

    Raises:
        ConfigError: a slice does not exist, or no validation target falls in it.
    """
    having = ["all", *dict.fromkeys(cases.slice)]
    if "cold" in having:
        having.append("cold_among_cold")
    allowed = ", ".join(name for name in SLICES if name in having)
    for name in stop_on.split("+"):
        if name in having:
            continue
        what = "which this split has not" if name in SLICES else "which does not exist"
        raise ConfigError(
            f"training.stop_on is '{stop_on}': it names the slice '{name}', {what}; validation "
            f"has {allowed}: change training.stop_on, or prepare a split with such targets"
        )


def case_vectors(
    model: RecommenderModel,
    cases: Cases,
    content: Tensor | None,
    item_index_of: np.ndarray[tuple[int], np.dtype[np.int64]],
    *,
    has: Tensor | None = None,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Users (U, D + 1) of cases and vectors (C, D + 1) of their candidates.

    Args:
        model: the model.
        cases: U users with what they are asked.
        content: (N, D); None for a model of ids.
        item_index_of: (R,) catalogue index of each of the model's rows.
        has: (N, M) what items have, see `item_vectors`.
        precision: of the user model's products.
    """
    items = item_vectors(model, content, item_index_of, num_items=cases.num_items, has=has)
    users = user_vectors(model, items.embedding, cases.history, cases.told, precision=precision)
    user_side, item_side = score_vectors(model, users, items)
    return user_side, item_side[torch.from_numpy(cases.candidates).to(item_side.device)]


def validate(assembly: Assembly, *, precision: str) -> Validation:
    """Ranks the validation cases with the model as it is.

    Args:
        assembly: the run's parts; its validation cases must exist.
        precision: of the user model's products; content too.
    """
    cases = assembly.validation
    assert cases is not None
    content = assembly.all_content(precision)
    users, items = case_vectors(
        assembly.model,
        cases,
        content,
        assembly.item_index_of,
        has=assembly.has,
        precision=precision,
    )
    ranking = rank(cases, users, items)
    if content is not None:
        content = content_for_users(assembly.model, content, assembly.item_index_of, assembly.has)
    return Validation(
        slice_metrics(ranking, cases, popularity=assembly.popularity), content, users, items
    )


def rank(cases: Cases, users: Tensor, items: Tensor) -> Ranking:
    """Ranks of the targets under vectors of cases and candidates."""
    return rank_cases(VectorScorer(users, items), cases, device=users.device)
