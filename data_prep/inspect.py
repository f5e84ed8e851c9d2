"""Describes a prepared folder: size, density, coverage, duplicates, quarantine, splits.

facts = inspect(path)      a dict of JSON values, from manifests and indexes alone
text = render(facts)       the same, aligned for a terminal
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.shards import PreparedData

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "max": 1.0}


def inspect(path: Path) -> dict[str, Any]:
    """Describe a prepared folder.

    Density is the share of pairs of user and item, both with events, that met. Events a user and
    an item are those of the first split, which leaves out users with too few.

    Raises:
        ShardError: the folder is not a prepared one or is damaged.
    """
    data = PreparedData.open(path)
    data.verify_tables()
    counts = data.manifest["counts"]
    splits = [data.split(name) for name in data.splits]
    num_items = counts["items"]
    pairs = counts["users_with_events"] * counts["items_with_events"]
    facts: dict[str, Any] = {
        "path": str(path),
        "name": data.manifest["name"],
        "schema": data.manifest["schema"],
        "data_hash": data.data_hash,
        "counts": {
            name: counts[name]
            for name in (
                "items",
                "items_with_events",
                "users",
                "users_with_events",
                "interactions",
                "media",
                "media_bytes",
            )
        }
        | {
            name: counts[name]
            for name in ("deleted_items", "interactions_of_deleted_items")
            if name in counts
        },
        "density": counts["distinct_pairs"] / pairs if pairs else None,
        "repeated_interactions": counts["interactions"] - counts["distinct_pairs"],
        "events_per_user": _quantiles(splits[0].full.lengths) if splits else None,
        "events_per_item": (
            _quantiles(_positive(splits[0].items["num_events"].to_numpy())) if splits else None
        ),
        "coverage": {
            "modalities": {
                name: _coverage(int(data.items.has(name).sum()), num_items)
                for name in data.items.modalities
            },
            "text_fields": {
                name: _coverage(counts["items_with_text_field"].get(name, 0), num_items)
                for name in data.catalogue.items.text
            },
        },
        "duplicates": {
            "exact": counts["exact_duplicates"],
            "near_duplicate_groups": counts["near_duplicate_groups"],
        },
        "quarantine": data.manifest["quarantine"],
        "splits": {
            split.name: {
                "protocol": split.manifest["protocol"],
                "hash": split.hash,
                **split.manifest["counts"],
                "quarantine": split.manifest["quarantine"],
            }
            for split in splits
        },
    }
    return facts


def render(facts: Mapping[str, Any]) -> str:
    """The facts as aligned lines of text."""
    counts = facts["counts"]
    density = facts["density"]
    duplicates = facts["duplicates"]
    lines = [f"{facts['name']}  {facts['path']}  data {facts['data_hash'][:12]}", ""]
    lines += _table(
        [
            ("items", _number(counts["items"]), f"{counts['items_with_events']:,} with events"),
            ("users", _number(counts["users"]), f"{counts['users_with_events']:,} with events"),
            (
                "interactions",
                _number(counts["interactions"]),
                f"{facts['repeated_interactions']:,} repeat a pair",
            ),
            *(
                [
                    (
                        "deleted items",
                        _number(counts["deleted_items"]),
                        f"{counts['interactions_of_deleted_items']:,} interactions left out",
                    )
                ]
                if "deleted_items" in counts
                else []
            ),
            ("density", "-" if density is None else f"{density:.2%}", "of users x items met"),
            ("media", _number(counts["media"]), f"{counts['media_bytes'] / 1e6:,.1f} MB"),
            (
                "duplicates",
                _number(duplicates["exact"]),
                f"{duplicates['near_duplicate_groups']:,} near-duplicate groups",
            ),
        ]
    )
    lines += ["", *_table([("events", *_QUANTILES, "mean"), *_event_rows(facts)])]
    coverage = facts["coverage"]
    rows = [("coverage", "items", "share")]
    for name, cover in coverage["modalities"].items():
        rows.append((name, _number(cover["items"]), f"{cover['share']:.1%}"))
        if name == "text":
            for field, part in coverage["text_fields"].items():
                rows.append((f"  {field}", _number(part["items"]), f"{part['share']:.1%}"))
    lines += ["", *_table(rows)]
    aside = _quarantine_rows(facts["quarantine"])
    lines += ["", *_table([("quarantine", "count"), *(aside or [("nothing", "0")])])]
    for name, split in facts["splits"].items():
        lines += ["", *_table(_split_rows(name, split))]
    return "\n".join(lines)


def _positive(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return values[values > 0]


def _quantiles(values: NDArray[np.int64]) -> dict[str, float] | None:
    if values.size == 0:
        return None
    found = np.quantile(values, list(_QUANTILES.values()), method="lower")
    named = {name: int(value) for name, value in zip(_QUANTILES, found, strict=True)}
    return {**named, "mean": round(float(values.mean()), 2)}


def _coverage(count: int, total: int) -> dict[str, float]:
    return {"items": count, "share": count / total}


def _event_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name in ("user", "item"):
        values = facts[f"events_per_{name}"]
        if values is not None:
            rows.append((f"per {name}", *(f"{value:,}" for value in values.values())))
    return rows


def _quarantine_rows(quarantine: Mapping[str, Mapping[str, int]]) -> list[tuple[str, ...]]:
    return [
        (f"{kind}: {reason}", _number(count))
        for kind, reasons in quarantine.items()
        for reason, count in reasons.items()
    ]


def _split_rows(name: str, split: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [
        (f"split {name}", split["hash"][:12]),
        ("training events", _number(split["num_train_events"])),
        ("training users", _number(split["num_train_users"])),
    ]
    for which, slices in split["num_targets"].items():
        shown = ", ".join(f"{count:,} {part}" for part, count in slices.items() if count)
        rows.append((f"{which} targets", shown or "0"))
    cold = {role: n for role, n in split["num_items"].items() if role.startswith("cold") and n}
    rows += [(f"{role} items", _number(count)) for role, count in cold.items()]
    return rows + _quarantine_rows(split["quarantine"])


def _number(value: int) -> str:
    return f"{value:,}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Names to the left, figures right-aligned under each other."""
    widths = [
        max(len(row[column]) for row in rows if column < len(row))
        for column in range(max(map(len, rows)))
    ]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
