"""What chance alone could do: intervals of every model's figures, and ours against each baseline.

    table of ranks ─► one value a user and model ─► bootstrap over users, random signs over users

All models of a slice were asked for the same users, so that one draw of users serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from mmrec.evaluation.evaluate import user_values
from mmrec.evaluation.metrics import FloatArray

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """First minus second model, user by user.

    Attributes:
        slice: which targets.
        metric: such as `ndcg@10`.
        first: ours.
        second: a baseline.
        difference: the mean over users.
        interval: 95 % bootstrap interval of it.
        p_value: two-sided, of a paired randomisation test; not corrected for how many are made.
        num_users: users compared.
    """

    slice: str
    metric: str
    first: str
    second: str
    difference: float
    interval: Interval
    p_value: float
    num_users: int


def values_by_model(
    ranks: pl.DataFrame, models: Sequence[str], *, slice_name: str, metric: str
) -> FloatArray:
    """(U, M) values of each user and model, users in one order.

    Raises:
        ValueError: a model has no rank on the slice, or their users differ.
    """
    tables = [
        user_values(ranks, model=model, slice_name=slice_name, metric=metric) for model in models
    ]
    for model, table in zip(models, tables, strict=True):
        if not table["user_id"].equals(tables[0]["user_id"]):
            raise ValueError(f"{model!r} and {models[0]!r} were not asked for the same users")
    return np.stack([table["value"].to_numpy() for table in tables], axis=1)


def bootstrap_intervals(
    values: FloatArray, *, level: float = 0.95, num_samples: int = 1000, seed: int = 0
) -> list[Interval]:
    """`metrics.bootstrap_interval` of each column of (U, M), from the same draws of users."""
    generator = np.random.default_rng(seed)
    num_users = len(values)
    means = np.empty((num_samples, values.shape[1]))
    for sample in range(num_samples):
        drawn = np.bincount(generator.integers(num_users, size=num_users), minlength=num_users)
        means[sample] = drawn @ values / num_users
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def paired_p_values(
    differences: FloatArray, *, num_samples: int = 2000, seed: int = 0
) -> npt.NDArray[np.float64]:
    """`metrics.paired_test` of each column of (U, B) differences, from the same random signs."""
    observed = np.abs(differences.sum(0))
    generator = np.random.default_rng(seed)
    extreme = np.zeros(differences.shape[1])
    for _ in range(num_samples):
        signs = generator.integers(2, size=len(differences), dtype=np.int8) * 2.0 - 1.0
        extreme += np.abs(signs @ differences) >= observed - 1e-12
    p_values: npt.NDArray[np.float64] = (extreme + 1) / (num_samples + 1)
    return p_values


def intervals_and_tests(
    ranks: pl.DataFrame,
    models: Sequence[str],
    *,
    slices: Sequence[str],
    metrics: Sequence[str],
    tested: str,
) -> tuple[dict[str, dict[str, dict[str, Interval]]], list[PairedDifference]]:
    """Intervals of all models, and the first of them against each of the others.

    Args:
        ranks: model, user_id, item_id, slice, rank.
        models: by name, ours first.
        slices: on which all of them have ranks.
        metrics: that get an interval.
        tested: of these, the one that is compared user by user.

    Returns:
        model -> slice -> metric -> 95 % interval, and a difference a slice and baseline.
    """
    intervals: dict[str, dict[str, dict[str, Interval]]] = {
        model: {name: {} for name in slices} for model in models
    }
    differences = []
    for name in slices:
        for metric in metrics:
            values = values_by_model(ranks, models, slice_name=name, metric=metric)
            for model, interval in zip(models, bootstrap_intervals(values), strict=True):
                intervals[model][name][metric] = interval
            if metric == tested and len(models) > 1:
                differences += paired_differences(values, models, name, metric)
    return intervals, differences


def paired_differences(
    values: FloatArray, models: Sequence[str], slice_name: str, metric: str
) -> list[PairedDifference]:
    """The first of M models against each of the others.

    Args:
        values: (U, M) of a metric, a row a user.
        models: M names.
        slice_name: kept in the result.
        metric: kept in the result.
    """
    less = values[:, :1] - values[:, 1:]
    found = zip(
        models[1:], less.mean(0), bootstrap_intervals(less), paired_p_values(less), strict=True
    )
    return [
        PairedDifference(
            slice=slice_name,
            metric=metric,
            first=models[0],
            second=other,
            difference=float(difference),
            interval=interval,
            p_value=float(p_value),
            num_users=len(values),
        )
        for other, difference, interval, p_value in found
    ]
