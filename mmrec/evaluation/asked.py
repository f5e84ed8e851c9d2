"""A run's vectors for the validation cases, made once for all parts of the report.

Encoding thousands of histories is most of what a report costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmrec.evaluation.protocol import Cases, load_cases
from mmrec.loaded import LoadedRun
from mmrec.training.validate import case_vectors


@dataclass(frozen=True)
class Asked:
    """Cases and our vectors for them; their products are the scores.

    Attributes:
        cases: U of them.
        users: (U, D + 1).
        items: (C, D + 1) of the candidates.
    """

    cases: Cases
    users: Tensor
    items: Tensor


def ask_validation(loaded: LoadedRun) -> Asked | None:
    """The trained model on validation; None where the split has no validation targets."""
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "validation")
    if not len(cases):
        return None
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    return Asked(cases, users, items)
