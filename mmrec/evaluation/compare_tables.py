"""A comparison of runs as a terminal shows it: lines, and tables as rows of equal keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmrec.evaluation.compare import Row, RunComparison


def printed(found: RunComparison) -> Iterator[str | list[dict[str, Any]]]:
    """Strings are lines, lists are tables.

    Args:
        found: of `compare_runs`.
    """
    for name, runs in found.sides.items():
        yield f"{name}: " + ", ".join(f"{each['run']} (seed {each['seed']})" for each in runs)
    yield (
        f"{found.targets} targets, protocol {found.protocol.get('name')} "
        f"({str(found.protocol.get('hash'))[:16]}); first minus second, ± over seeds"
    )
    yield _printed_rows(found.rows)
    yield (
        f"p: paired randomisation over users; {len(found.rows)} tests, none corrected for the "
        "others. Intervals and p say nothing of other seeds."
    )
    beside = [*found.lists, *found.costs]
    if beside:
        yield [
            {"mean over runs": each.name}
            | {side: _number(value) for side, value in each.values.items()}
            for each in beside
        ]
    if found.settings:
        yield [
            {"setting": each.name} | {side: _shown(own) for side, own in each.values.items()}
            for each in found.settings
        ]
    else:
        yield "no setting differs"


def _printed_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {
            "slice": row.slice,
            "metric": row.metric,
            "users": row.num_users,
            "sides": f"{row.first} - {row.second}",
            "first": _with_spread(row.first_by_run),
            "second": _with_spread(row.second_by_run),
            "difference": f"{row.difference:+.4f}",
            "relative": "-" if row.relative is None else f"{row.relative:+.1%}",
            "95 % over users": f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}",
            "p": f"{row.p_value:.4f}",
        }
        for row in rows
    ]


def _with_spread(by_run: Sequence[float]) -> str:
    mean = f"{np.mean(by_run):.4f}"
    return mean if len(by_run) == 1 else f"{mean} ±{np.std(by_run, ddof=1):.4f}"


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 100 else f"{value:,.0f}"


def _shown(values: Sequence[Any]) -> str:
    return " | ".join("-" if value is None else str(value) for value in values)
