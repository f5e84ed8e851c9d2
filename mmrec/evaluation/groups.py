"""Accuracy by attribute: is the model as good for every group of users, and of items?

    evaluation.groups (users.gender, items.genres) + ranks ─► a Breakdown a name
                                                           ─► the worst group of each

Groups are the values of a category or the members of a set; a user or item with several is in each
of them, one without any in `unknown`. From ranks alone, as every breakdown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from data_prep.shards import PreparedData
from mmrec.errors import ConfigError
from mmrec.evaluation.breakdown import CASE_SLICES, Breakdown, group_metrics
from mmrec.evaluation.evaluate import Metrics

MOST_GROUPS = 12
"""Commonest values shown of an attribute; all others are one group."""
FEWEST_USERS = 20
"""Groups of fewer users are shown, and are not called the worst: chance decides there."""
UNKNOWN, OTHERS = "unknown", "all others"


def attribute_breakdowns(
    ranks: pl.DataFrame, data: PreparedData, names: Sequence[str]
) -> list[Breakdown]:
    """Metrics of every model in each group, over targets of all slices.

    Args:
        ranks: model, user_index, item_index, slice, rank, as in `Evaluation.ranks`.
        data: whose users and items have the attributes.
        names: `users.NAME` or `items.NAME`, each a category or a set.

    Raises:
        ConfigError: a name is no such attribute.
    """
    check_groups(names, data)
    rows = ranks.filter(pl.col("slice").is_in(CASE_SLICES))
    found = []
    for name in names:
        whose, _, attribute = name.partition(".")
        column = "user_index" if whose == "users" else "item_index"
        members = np.unique(rows[column].to_numpy())
        if len(members):
            values = [values_of(data, whose, attribute, int(row)) for row in members]
            found.append(_breakdown(name, rows, column, members.tolist(), values))
    return found


def check_groups(names: Sequence[str], data: PreparedData) -> None:
    """Refuses names that are no category and no set of this catalogue."""
    allowed = [f"items.{name}" for name in _groupable(data.catalogue.items.attributes)]
    if data.catalogue.users is not None:
        allowed += [f"users.{name}" for name in _groupable(data.catalogue.users.attributes)]
    for name in names:
        if name not in allowed:
            raise ConfigError(
                f"evaluation.groups names '{name}': allowed are categories and sets of the "
                f"catalogue, here {', '.join(allowed) or 'none'}"
            )


def _groupable(attributes: Mapping[str, Any]) -> list[str]:
    return [name for name, spec in attributes.items() if spec.type in ("category", "set")]


def values_of(data: PreparedData, whose: str, attribute: str, row: int) -> list[str]:
    """The values of a user's or item's attribute; `unknown` where there is none."""
    if whose == "users":
        value = data.user_attributes[row].get(attribute)
    else:
        value = data.items.record(row).get("attributes", {}).get(attribute)
    if value is None or value == []:
        return [UNKNOWN]
    return [value] if isinstance(value, str) else list(dict.fromkeys(value))


def _breakdown(
    name: str, ranks: pl.DataFrame, column: str, members: list[int], values: list[list[str]]
) -> Breakdown:
    counts = Counter(value for own in values for value in own)
    ordered = sorted(counts, key=lambda value: (-counts[value], value))
    kept = [value for value in ordered if value != UNKNOWN][:MOST_GROUPS]
    named = {value: value for value in (*kept, UNKNOWN)}
    noun = "users" if column == "user_index" else "items"
    table = pl.DataFrame(
        [
            (member, group)
            for member, own in zip(members, values, strict=True)
            for group in sorted({named.get(value, OTHERS) for value in own})
        ],
        {column: ranks.schema[column], "group": pl.String},
        orient="row",
    )
    sizes: dict[str, int] = dict(table.group_by("group").len().iter_rows())
    groups = {
        group: f"{group}: {sizes[group]:,} {noun if sizes[group] != 1 else noun[:-1]}"
        for group in (*kept, OTHERS, UNKNOWN)
        if group in sizes
    }
    models: dict[str, dict[str, Metrics]] = {
        model: {} for model in ranks["model"].unique(maintain_order=True)
    }
    joined = ranks.join(table, on=column, maintain_order="left_right")
    for group in groups:
        own_rows = joined.filter(pl.col("group") == group)
        for (model,), own in own_rows.group_by("model", maintain_order=True):
            models[str(model)][group] = group_metrics(own)
    return Breakdown(name, "all", groups, models)


def worst_group(breakdown: Mapping[str, Any], model: str) -> str | None:
    """The group with the lowest NDCG@10 of those with enough users; None where there are not two.

    Args:
        breakdown: as in report.json.
        model: whose.
    """
    metrics = breakdown["models"].get(model, {})
    enough = [name for name, own in metrics.items() if own["num_users"] >= FEWEST_USERS]
    if len(enough) < 2:
        return None
    return min(enough, key=lambda name: metrics[name]["ndcg@10"])
