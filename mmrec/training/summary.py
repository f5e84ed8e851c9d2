"""What `mmrec train` ends with: RUN/summary.json, a table on validation and the gap to training.

    RUN + DATA ─► before training, after training, popularity ─► figures on validation
               └► targets of training beside those of validation ─► gap

Test targets are read by `mmrec evaluate` alone; its report has the same table on them. The weights
and the offset of new items were chosen on validation: figures here are a little too good.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrec.data.user_share import in_share
from mmrec.evaluation.ablation import before_training, untrained
from mmrec.evaluation.baselines import fit_baselines
from mmrec.evaluation.evaluate import evaluate_scorers
from mmrec.evaluation.gap import Gap, training_gap
from mmrec.evaluation.protocol import load_cases, training_histories, training_popularity
from mmrec.evaluation.ranking import Scorer, VectorScorer
from mmrec.evaluation.report_document import write_document
from mmrec.loaded import load_run
from mmrec.terminal import plain
from mmrec.training.validate import case_vectors

SCHEMA = 1


def summarise(run: Path, data: Path | None = None) -> dict[str, Any] | None:
    """Ranks validation targets with a finished run, with its untrained model and by popularity.

    It costs about two looks at validation, one of them for the untrained model's items.

    Args:
        run: a finished run.
        data: the prepared folder where it has moved.

    Returns:
        The content of RUN/summary.json; None, and no file, where the split has no validation.

    Raises:
        CheckpointMismatch: the run is not finished, or the data are others.
    """
    loaded = load_run(run, data)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "validation")
    chosen = in_share(loaded.data.user_ids, loaded.config.data.user_share)
    cases = cases.take(np.flatnonzero(chosen[cases.user_index]))
    if not len(cases):
        return None
    popularity = training_popularity(loaded.split)
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    scorers: dict[str, Scorer] = {"after training": VectorScorer(users, items)}
    scorers |= fit_baselines(
        ["popularity"],
        cases,
        train_users=loaded.split.train.user_index,
        train=training_histories(loaded.split),
    )
    models: dict[str, Any] = {}
    fresh = untrained(loaded)
    if fresh is not None:
        models["before training"] = before_training(fresh, cases, popularity)
    evaluation = evaluate_scorers(scorers, cases, popularity=popularity, device=loaded.device)
    document = {
        "schema": SCHEMA,
        "split": loaded.split.name,
        "targets": "validation",
        "data_hash": loaded.data.data_hash,
        "seed": loaded.config.training.seed,
        "models": models | evaluation.models,
        "gap": plain(training_gap(loaded)),
    }
    write_document(run / "summary.json", document)
    return document


def gap_line(summary: Mapping[str, Any]) -> str:
    """The gap in one line for a person.

    Args:
        summary: of `summarise`.
    """
    gap = summary["gap"]
    if gap is None:
        return "no user has both a training and a warm validation target: no gap to tell"
    return Gap(**gap).line()
