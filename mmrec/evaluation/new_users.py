"""Users who were held out of training, asked behind their first 0, 1, 3, 5 events.

    data.new_users, evaluation.first_events ─► Cases at each number of events ─► a curve a model

Whatever the number, a user has the same targets, the first ten of his events behind the largest
number, and the same items left out of his lists, all that he met before these: the figures of one
curve differ in what is known of him alone. Baselines are fitted to training histories only, not to
what is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from data_prep.shards import PreparedData
from mmrec.data.new_users import KnownUsersSplit
from mmrec.data.targets import target_rule
from mmrec.evaluation.baselines import Content, fit_baselines
from mmrec.evaluation.evaluate import rank_metrics
from mmrec.evaluation.metrics import FloatArray, bootstrap_interval, case_metrics
from mmrec.evaluation.protocol import (
    TARGETS_SCHEMA,
    Cases,
    Which,
    cases_of,
    is_cold_item,
    training_histories,
)
from mmrec.evaluation.ranking import Scorer, VectorScorer, rank_cases
from mmrec.loaded import LoadedRun
from mmrec.training.validate import case_vectors

NUM_TARGETS = 10
METRICS = ("ndcg@10", "hr@10", "recall@10")


def new_user_figures(
    loaded: LoadedRun, which: Which, *, content: Content | None = None
) -> dict[str, Any]:
    """Our model and its baselines on new users, by the number of events that are known.

    Args:
        loaded: a run that was trained without some users.
        which: the half of them.
        content: vectors of content_knn.

    Returns:
        {share, num_users, num_targets, first_events, models: {NAME: [{events, metrics, interval:
        95 % of NDCG@10 over users}]}, gain: [{events, difference, interval}] of ours over
        popularity}; num_users is 0 and there are no models where nobody can be asked.
    """
    split, data, settings = loaded.split, loaded.data, loaded.config.evaluation
    assert isinstance(split, KnownUsersSplit) and data is not None
    numbers = sorted(set(settings.first_events))
    table = new_user_targets(data, split, which, max(numbers))
    found: dict[str, Any] = {
        "share": split.share,
        "num_users": table["user_index"].n_unique(),
        "num_targets": table.height,
        "first_events": numbers,
        "models": {},
        "gain": [],
    }
    for events in numbers if table.height else ():
        cases = cases_of(data, split, table, which, first_events=events)
        values = {}
        for name, scorer in _scorers(loaded, cases, content).items():
            ranking = rank_cases(scorer, cases, device=loaded.device)
            metrics = rank_metrics(ranking, cases, "new_users", ks=(10,))
            values[name] = case_metrics(ranking.rank, cases.targets.offsets, ks=(10,))["ndcg@10"]
            row: dict[str, Any] = {
                "events": events,
                **{metric: metrics[metric] for metric in METRICS},
            }
            row["interval"] = list(bootstrap_interval(values[name]))
            found["models"].setdefault(name, []).append(row)
        if "popularity" in values:
            found["gain"].append(_gain(events, values["mmrec"] - values["popularity"]))
    return found


def new_user_targets(
    data: PreparedData, split: KnownUsersSplit, which: Which, most: int
) -> pl.DataFrame:
    """What the new users are asked, as `Split.targets` has it.

    Args:
        data: the prepared folder, which says what a target is.
        split: without the new users.
        which: the half of them.
        most: events that are history and no targets; who has no target behind them is left out.
    """
    rule, is_cold = target_rule(data), is_cold_item(split)
    row_of = {int(user): row for row, user in enumerate(split.full.user_index)}
    rows = []
    for user in split.new_users(which).tolist():
        if user not in row_of:  # set aside by split.min_events
            continue
        history = split.full.read(row_of[user])
        items = history.item_index
        warm = np.flatnonzero(~is_cold[items])
        if len(warm) <= most:
            continue
        position = int(warm[most - 1]) + 1 if most else 0
        asked = rule.allowed(history.event, history.value, 0, len(items)) & ~is_cold[items]
        if data.catalogue.repeats == "forbid":
            asked &= ~np.isin(items, items[:position])
        targets = dict.fromkeys(items[position:][asked[position:]].tolist())
        rows += [(user, item, position, "new_users") for item in list(targets)[:NUM_TARGETS]]
    return pl.DataFrame(rows, TARGETS_SCHEMA, orient="row")


def _scorers(loaded: LoadedRun, cases: Cases, content: Content | None) -> dict[str, Scorer]:
    assert loaded.split is not None
    users, items = case_vectors(
        loaded.model, cases, loaded.content, loaded.item_index_of, has=loaded.has
    )
    train = training_histories(loaded.split)
    names: Sequence[str] = loaded.config.evaluation.baselines
    baselines = fit_baselines(
        [name for name in names if name != "content_knn" or content is not None],
        cases,
        train_users=loaded.split.train.user_index,
        train=train,
        inputs=train,
        content=content,
        seed=loaded.config.training.seed,
    )
    return {"mmrec": VectorScorer(users, items), **baselines}


def _gain(events: int, values: FloatArray) -> dict[str, Any]:
    return {
        "events": events,
        "difference": float(values.mean()),
        "interval": list(bootstrap_interval(values)),
    }
