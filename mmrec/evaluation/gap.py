"""The gap from training to validation: how much closer a model fits the targets it was shown.

    a user's last training target ─► NDCG@10 ─┐
    his warm validation target    ─► NDCG@10 ─┴► mean difference over users, with its interval

Both are asked of the finished model, without dropout, by the one protocol: the same candidates,
items met before removed. The training loss of metrics.jsonl is no such side: it is taken with
dropout, from weights that go on moving, and validation has no loss beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from data_prep.shards import PreparedData, Split
from mmrec.data.ragged import IntArray
from mmrec.data.targets import target_rule
from mmrec.data.thinning import ThinnedSplit
from mmrec.data.user_share import in_share
from mmrec.evaluation.metrics import FloatArray, bootstrap_interval, case_metrics
from mmrec.evaluation.protocol import TARGETS_SCHEMA, Cases, cases_of, is_cold_item
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.evaluation.significance import Interval
from mmrec.loaded import LoadedRun
from mmrec.training.validate import case_vectors

# On MovieLens-1M a gap is then known to about ±.017; all 6,040 users would give ±.010.
MAX_USERS = 2000


@dataclass(frozen=True)
class Gap:
    """NDCG@10 of the same users on a target of training and on one of validation.

    The weights were chosen on validation, so the gap is, if anything, a little too small.

    Attributes:
        num_users: at most 2,000, taken evenly among those with both targets.
        train_ndcg: on the last event of each that training counts as a target.
        validation_ndcg: on the warm validation target; of several the first.
        difference: the gap, training minus validation: 0 where nothing is fitted too closely.
        interval: 95 % bootstrap interval of it over users.
    """

    num_users: int
    train_ndcg: float
    validation_ndcg: float
    difference: float
    interval: Interval

    def line(self) -> str:
        """One line for a person."""
        low, high = self.interval
        return (
            f"train-validation gap of NDCG@10: {self.difference:+.4f} ({low:+.4f} to {high:+.4f}); "
            f"{self.train_ndcg:.4f} on targets of training, {self.validation_ndcg:.4f} on "
            f"validation, {self.num_users:,} users"
        )


def training_gap(loaded: LoadedRun, *, max_users: int = MAX_USERS) -> Gap | None:
    """Ranks a target of training and one of validation of some users.

    Args:
        loaded: a finished run.
        max_users: most users asked.

    Returns:
        None where no user has both targets.
    """
    data, split = loaded.data, loaded.split
    assert data is not None and split is not None
    held_out = split.targets("validation").filter(pl.col("slice") == "warm")
    held_out = held_out.sort("user_index", "position", maintain_order=True)
    held_out = held_out.unique("user_index", keep="first", maintain_order=True)
    users = held_out["user_index"].to_numpy()
    chosen = in_share(data.user_ids, loaded.config.data.user_share)
    users = np.intersect1d(users[chosen[users]], split.train.user_index)
    if len(users) > max_users:
        users = users[np.linspace(0, len(users) - 1, max_users).astype(int)]
    fitted = last_training_targets(data, split, users)
    if fitted.is_empty():
        return None
    held_out = held_out.filter(pl.col("user_index").is_in(fitted["user_index"].implode()))
    train = _ndcg(loaded, cases_of(data, split, fitted, "validation"))
    validation = _ndcg(loaded, cases_of(data, split, held_out, "validation"))
    return Gap(
        num_users=len(train),
        train_ndcg=float(train.mean()),
        validation_ndcg=float(validation.mean()),
        difference=float((train - validation).mean()),
        interval=bootstrap_interval(train - validation),
    )


def last_training_targets(data: PreparedData, split: Split, users: IntArray) -> pl.DataFrame:
    """The last event of each user that training counts as a target, as `Split.targets` has them.

    Args:
        data: the prepared folder, which says what a target is.
        split: one of its splits.
        users: user_index of users with a training history.
    """
    rule, is_cold = target_rule(data), is_cold_item(split)
    train_row, full_row = (
        dict(zip(index.user_index.tolist(), range(len(index)), strict=True))
        for index in (split.train, split.full)
    )
    rows = []
    for user in users.tolist():
        history = split.train.read(train_row[user])
        counted = rule.allowed(history.event, history.value, 0, len(history.item_index))
        places = np.flatnonzero(counted)
        if not len(places) or places[-1] == 0:  # the first event of a history is input only
            continue
        # training keeps the warm events that are known of the complete history, up to where it ends
        whole = split.full.read(full_row[user])
        trained = ~is_cold[whole.item_index]
        if isinstance(split, ThinnedSplit):
            trained &= split.knows(whole)
        position = int(np.flatnonzero(trained)[places[-1]])
        rows.append((user, int(whole.item_index[position]), position, "warm"))
    return pl.DataFrame(rows, TARGETS_SCHEMA, orient="row")


def _ndcg(loaded: LoadedRun, cases: Cases) -> FloatArray:
    """(U,) NDCG@10 of cases of one target each."""
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    ranking = rank_cases(VectorScorer(users, items), cases, device=users.device)
    return case_metrics(ranking.rank, cases.targets.offsets, ks=(10,))["ndcg@10"]
