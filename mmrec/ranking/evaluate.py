"""The second stage beside retrieval alone on one split's targets, for `mmrec evaluate`."""

from __future__ import annotations

from typing import Any

from mmrec.evaluation.protocol import Cases
from mmrec.loaded import LoadedRun
from mmrec.ranking.gain import ask, gain, rank_again
from mmrec.ranking.lists import freeze
from mmrec.retrieval.load import retriever_of
from mmrec.retrieval.second_stage import load_second_stage


def evaluate_ranker(loaded: LoadedRun, cases: Cases) -> dict[str, Any] | None:
    """What the ranker of a run adds; None where it has none.

    Args:
        loaded: a finished run.
        cases: of validation or test.

    Returns:
        candidates, in_use, and by slice what `mmrec.ranking.gain.gain` gives.

    Raises:
        CheckpointMismatch: the ranker cannot be used.
    """
    stage = load_second_stage(retriever_of(loaded))
    if stage is None:
        return None
    frozen = freeze(loaded)
    asked = ask(frozen, cases, stage.num_candidates)
    found = gain(asked, rank_again(frozen, stage.inputs, stage.ranker, asked))
    return {"candidates": stage.num_candidates, "in_use": stage.in_use, "slices": found}
