"""Runs scorers over the same cases and writes what a run keeps: metrics and ranks.

    {name: Scorer} + Cases ─► Evaluation ─► RUN/metrics-test.json, RUN/ranks-test.parquet

Paired tests and intervals are made from the ranks, so that they need no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import scipy.sparse as sparse
import torch

from mmrec.data.ragged import IntArray, Ragged, offsets_of
from mmrec.evaluation.lists import ItemTraits, case_list_metrics, exposure_shares
from mmrec.evaluation.metrics import (
    KS,
    FloatArray,
    bootstrap_interval,
    case_metrics,
    list_metrics,
    metrics_from_ranks,
    paired_test,
    user_means,
)
from mmrec.evaluation.protocol import Cases, Which
from mmrec.evaluation.ranking import Ranking, Scorer, rank_cases

SCHEMA = 1
SLICES = ("all", "warm", "cold", "cold_among_cold", "new_users")
RANK_COLUMNS = ("model", "user_id", "item_id", "slice", "rank")

Metrics = dict[str, float | int]


@dataclass(frozen=True)
class Evaluation:
    """Figures of several models on the same cases.

    Attributes:
        models: name -> slice -> `num_users`, `num_targets` and metrics; an absent slice is None.
        ranks: model, user_index, item_index, slice, rank; a row a model, target and slice, `all`
            apart, which is the union of warm, cold and new_users.
        exposures: name -> for each grouping asked for (G,) `exposure_shares`.
    """

    models: dict[str, dict[str, Metrics | None]]
    ranks: pl.DataFrame
    exposures: dict[str, list[FloatArray]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """How two models differ in one metric on one slice, over the same users.

    Attributes:
        difference: mean of first minus second.
        interval: 95 % bootstrap interval of it over users.
        p_value: of a paired randomisation test.
        num_users: users compared.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float
    num_users: int


def evaluate_scorers(
    scorers: Mapping[str, Scorer],
    cases: Cases,
    *,
    popularity: IntArray,
    traits: ItemTraits | None = None,
    groupings: Sequence[sparse.csr_array] = (),
    ks: Sequence[int] = KS,
    device: torch.device | str = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Ranks the same cases with every scorer.

    Args:
        scorers: by name; ours is "mmrec".
        cases: who is asked what.
        popularity: (N,) training events of each item, for novelty and popularity of lists.
        traits: of the items, for the diversity of lists and their match with histories.
        groupings: (N, G) shares of groups in the items, for the exposure of each group.
        ks: the list lengths.
        device: where scores are compared.
        progress: called with (name, cases done, cases).
    """
    models: dict[str, dict[str, Metrics | None]] = {}
    ranks = []
    exposures = {}
    for name, scorer in scorers.items():

        def report(done: int, total: int, name: str = name) -> None:
            if progress is not None:
                progress(name, done, total)

        ranking = rank_cases(scorer, cases, top_k=max(ks), device=device, progress=report)
        of_lists = None
        if traits is not None:
            of_lists = case_list_metrics(ranking.top_items, cases.history, traits)
        models[name] = slice_metrics(
            ranking, cases, popularity=popularity, of_lists=of_lists, ks=ks
        )
        ranks.append(_rank_table(name, ranking, cases))
        exposures[name] = [exposure_shares(ranking.top_items, shares) for shares in groupings]
    return Evaluation(models, pl.concat(ranks) if ranks else _empty_ranks(), exposures)


def slice_metrics(
    ranking: Ranking,
    cases: Cases,
    *,
    popularity: IntArray,
    of_lists: Mapping[str, FloatArray] | None = None,
    ks: Sequence[int] = KS,
) -> dict[str, Metrics | None]:
    """Metrics of one ranking on every slice; None where the slice has no case.

    `cold_among_cold` says nothing of lists, since the lists are those among all candidates.

    Args:
        ranking: of the cases.
        cases: who is asked what.
        popularity: (N,) training events of each item.
        of_lists: further metrics of lists, (U,) each, nan where a list has none; their means over
            lists join the others.
        ks: the list lengths.
    """
    result: dict[str, Metrics | None] = {}
    for slice_name in SLICES:
        rows = _rows_of(cases, slice_name)
        if not len(rows):
            result[slice_name] = None
            continue
        metrics = rank_metrics(ranking, cases, slice_name, ks=ks)
        if slice_name != "cold_among_cold":
            metrics.update(
                list_metrics(
                    ranking.top_items[rows],
                    popularity,
                    num_candidates=len(cases.candidates),
                    ks=ks,
                )
            )
            for name, values in (of_lists or {}).items():
                own = values[rows]
                if not np.isnan(own).all():
                    metrics[name] = float(np.nanmean(own))
        result[slice_name] = metrics
    return result


def rank_metrics(
    ranking: Ranking, cases: Cases, slice_name: str, *, ks: Sequence[int] = KS
) -> Metrics:
    """Of a slice that has cases: users, targets, and what the ranks of its targets say."""
    rows = _rows_of(cases, slice_name)
    ranks, offsets = ranks_of(
        ranking.rank_among_cold if slice_name == "cold_among_cold" else ranking.rank,
        cases.targets,
        rows,
    )
    users = cases.user_index[rows]
    metrics: Metrics = {"num_users": len(np.unique(users)), "num_targets": len(ranks)}
    metrics.update(metrics_from_ranks(ranks, offsets, users, ks=ks))
    return metrics


def _rows_of(cases: Cases, slice_name: str) -> IntArray:
    if slice_name == "all":
        return np.arange(len(cases))
    wanted = "cold" if slice_name == "cold_among_cold" else slice_name
    return np.flatnonzero(np.array(cases.slice, dtype=object) == wanted)


def metrics_document(
    evaluation: Evaluation,
    *,
    split: str,
    protocol: Mapping[str, Any],
    data_hash: str,
    checkpoint: str | None,
    seed: int,
) -> dict[str, Any]:
    """The content of metrics-test.json and metrics-validation.json."""
    return {
        "schema": SCHEMA,
        "split": split,
        "protocol": dict(protocol),
        "data_hash": data_hash,
        "checkpoint": checkpoint,
        "seed": seed,
        "models": evaluation.models,
    }


def write_evaluation(
    run: Path,
    which: Which,
    evaluation: Evaluation,
    document: Mapping[str, Any],
    *,
    user_ids: Sequence[str],
    item_ids: Sequence[str],
) -> None:
    """Writes RUN/metrics-{which}.json and RUN/ranks-{which}.parquet, each aside, then renamed.

    Args:
        run: folder of the run.
        which: whose targets they are.
        evaluation: gives the ranks.
        document: of `metrics_document`.
        user_ids: id of each user_index.
        item_ids: id of each item_index.
    """
    run.mkdir(parents=True, exist_ok=True)
    ranks = evaluation.ranks.select(
        "model",
        pl.Series("user_id", user_ids, dtype=pl.String)
        .gather(evaluation.ranks["user_index"])
        .alias("user_id"),
        pl.Series("item_id", item_ids, dtype=pl.String)
        .gather(evaluation.ranks["item_index"])
        .alias("item_id"),
        "slice",
        "rank",
    )
    ranks_path = run / f"ranks-{which}.parquet"
    aside = ranks_path.with_suffix(".parquet.part")
    ranks.write_parquet(aside)
    os.replace(aside, ranks_path)
    metrics_path = run / f"metrics-{which}.json"
    aside = metrics_path.with_suffix(".json.part")
    aside.write_text(
        json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        encoding="utf-8",
    )
    os.replace(aside, metrics_path)


def user_values(ranks: pl.DataFrame, *, model: str, slice_name: str, metric: str) -> pl.DataFrame:
    """One value a user from a table of ranks, e.g. ranks-test.parquet.

    Args:
        ranks: model, user_id, item_id, slice, rank.
        model: whose ranks.
        slice_name: of `SLICES`.
        metric: a name of `case_metrics`, such as "ndcg@10" or "mrr".

    Returns:
        user_id, value, in ascending order of user_id.

    Raises:
        ValueError: the table has no such rank, or there is no such metric.
    """
    parts = ("warm", "cold", "new_users") if slice_name == "all" else (slice_name,)
    own = ranks.filter((pl.col("model") == model) & pl.col("slice").is_in(parts)).sort(
        "user_id", "slice"
    )
    if own.is_empty():
        raise ValueError(f"the ranks hold nothing of model {model!r} on slice {slice_name!r}")
    cases = own.group_by("user_id", "slice", maintain_order=True).agg("rank")
    name, _, k = metric.partition("@")
    computed = case_metrics(
        own["rank"].to_numpy(), offsets_of(cases["rank"].list.len().to_list()), ks=(int(k or 1),)
    )
    if metric not in computed:
        raise ValueError(f"metric {metric!r}: {name!r} is none of {', '.join(computed)}")
    users, row = np.unique(cases["user_id"].to_numpy().astype(str), return_inverse=True)
    return pl.DataFrame({"user_id": users, "value": user_means(computed[metric], row)})


def compare_models(
    ranks: pl.DataFrame, first: str, second: str, *, slice_name: str = "warm", metric: str
) -> Comparison:
    """Tests whether two models differ, from a table of ranks.

    Raises:
        ValueError: a model has no rank on the slice, or their users differ.
    """
    values = [
        user_values(ranks, model=model, slice_name=slice_name, metric=metric)
        for model in (first, second)
    ]
    if not values[0]["user_id"].equals(values[1]["user_id"]):
        raise ValueError(f"{first!r} and {second!r} were not asked for the same users")
    ours, theirs = (table["value"].to_numpy() for table in values)
    return Comparison(
        difference=float((ours - theirs).mean()),
        interval=bootstrap_interval(ours - theirs),
        p_value=paired_test(ours, theirs, num_samples=2000),
        num_users=len(ours),
    )


def ranks_of(ranks: FloatArray, targets: Ragged, rows: IntArray) -> tuple[FloatArray, IntArray]:
    """Picks some cases.

    Args:
        ranks: (T,) of all targets.
        targets: of the cases, in the same order.
        rows: (b,) of the cases wanted.

    Returns:
        Ranks of their targets, and where those of each case start.
    """
    place = Ragged(np.arange(len(targets.values)), targets.offsets).take(rows)
    return ranks[place.values], place.offsets


def _rank_table(name: str, ranking: Ranking, cases: Cases) -> pl.DataFrame:
    """The rows of one model, those among cold candidates last."""
    row = cases.targets.row_of_value
    table = pl.DataFrame(
        {
            "model": pl.Series([name], dtype=pl.String).new_from_index(0, len(row)),
            "user_index": cases.user_index[row],
            "item_index": cases.targets.values,
            "slice": pl.Series(cases.slice, dtype=pl.String).gather(row),
            "rank": ranking.rank,
        }
    )
    among_cold = table.with_columns(
        pl.Series("rank", ranking.rank_among_cold), pl.lit("cold_among_cold").alias("slice")
    ).filter(pl.col("rank").is_not_nan())
    return pl.concat([table, among_cold])


def _empty_ranks() -> pl.DataFrame:
    return pl.DataFrame(
        schema={
            "model": pl.String,
            "user_index": pl.Int64,
            "item_index": pl.Int64,
            "slice": pl.String,
            "rank": pl.Float64,
        }
    )
