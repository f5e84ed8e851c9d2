"""From the ranks of all arms to results.json and results.md.

A user's value is his mean over seeds; the mean over users carries a 95 % bootstrap interval over
users, and the deviation over seeds where there are several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.peers.arms import arm_folder, read_state
from benchmarks.peers.plan import FLOORS, OURS, Arm, Plan, Table
from mmrec.evaluation.evaluate import compare_models, user_values
from mmrec.evaluation.metrics import bootstrap_interval

METRICS = ("hr@10", "ndcg@10")
SLICES = {"warm": "warm", "cold": "cold", "cold_among_cold": "cold among cold"}


def write_results(
    plan: Plan, arms: Sequence[Arm], out: Path, *, seeds: Sequence[int], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Read what there is of the arms and write both files; returns the content of the first."""
    tables = []
    for table in plan.tables:
        own = [arm for arm in arms if arm.table == table.name]
        if own:
            rows = [row_of(arm, table, out, seeds) for arm in own]
            comparisons = compare_with_best(own, table, out, seeds, rows)
            tables.append(
                {
                    "name": table.name,
                    "title": table.title,
                    "slices": list(table.slices),
                    "rows": rows,
                    "comparisons": comparisons,
                }
            )
    document = {
        "schema": 1,
        "plan": plan.name,
        "title": plan.title,
        "machine": dict(machine),
        "tables": tables,
    }
    _write(out / "results.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    _write(out / "results.md", render(document))
    return document


def row_of(arm: Arm, table: Table, out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """One arm's line: figures where its seeds are done, else why it is not."""
    wanted = arm.seeds(seeds)
    states = {seed: read_state(arm_folder(out, arm) / f"seed-{seed}") for seed in wanted}
    done = [seed for seed in wanted if states[seed].get("status") == "done"]
    broken = [state for state in states.values() if state.get("status") == "broken"]
    row: dict[str, Any] = {
        "name": arm.name,
        "peer": arm.peer,
        "origin": arm.origin,
        "seeds": done,
        "reason": broken[0]["reason"] if broken else None,
        "slices": {},
    }
    if not done:
        return row
    kept = [states[seed] for seed in done]
    ranks = [ranks_of(arm, out, seed) for seed in done]
    row |= {
        "settings": kept[0]["settings"],
        "versions": kept[0]["versions"],
        "notes": [state["notes"] for state in kept],
        "seconds": float(np.mean([state["seconds"] for state in kept])),
        "fit_s": float(np.mean([state["fit_s"] for state in kept])),
        "cpu_s": float(np.mean([state["cpu_s"] for state in kept])),
        "peak_gb": max(state["peak_gb"] for state in kept),
        "slices": {name: figures(ranks, arm.name, name) for name in table.slices},
    }
    return row


def ranks_of(arm: Arm, out: Path, seed: int) -> pl.DataFrame:
    """The ranks of one seed, under the arm's name."""
    folder = arm_folder(out, arm) / f"seed-{seed}"
    state = read_state(folder)
    ranks = pl.read_parquet(folder / state["ranks"]).filter(pl.col("model") == state["model"])
    return ranks.with_columns(pl.lit(arm.name).alias("model"))


def figures(ranks: Sequence[pl.DataFrame], model: str, slice_name: str) -> dict[str, Any]:
    """Each metric's mean, interval over users, and deviation over seeds."""
    found: dict[str, Any] = {}
    for metric in METRICS:
        values = np.array(
            [
                user_values(each, model=model, slice_name=slice_name, metric=metric)["value"]
                for each in ranks
            ]
        )
        low, high = bootstrap_interval(values.mean(axis=0))
        found[metric] = {
            "mean": float(values.mean()),
            "low": low,
            "high": high,
            "deviation": float(values.mean(axis=1).std(ddof=1)) if len(values) > 1 else None,
            "num_users": values.shape[1],
        }
    return found


def compare_with_best(
    arms: Sequence[Arm], table: Table, out: Path, seeds: Sequence[int], rows: Sequence[Any]
) -> list[str]:
    """Ours beside the best peer of each slice, floors apart, user by user, with the first seed."""
    ours = [arm for arm, row in zip(arms, rows, strict=True) if arm.peer == OURS and row["slices"]]
    peers = [
        (arm, row)
        for arm, row in zip(arms, rows, strict=True)
        if arm.peer not in (OURS, FLOORS) and row["slices"]
    ]
    sentences = []
    for arm in ours if peers else ():
        for name in table.slices:
            best = max(peers, key=lambda pair: pair[1]["slices"][name]["ndcg@10"]["mean"])[0]  # noqa: B023
            both = pl.concat([ranks_of(each, out, seeds[0]) for each in (arm, best)])
            found = compare_models(both, arm.name, best.name, slice_name=name, metric="ndcg@10")
            low, high = found.interval
            sentences.append(
                f"NDCG@10, {SLICES[name]}: {arm.name} {found.difference:+.4f} against {best.name} "
                f"(95 % interval {low:+.4f} to {high:+.4f}, paired p = {found.p_value:.3f}, "
                f"{found.num_users:,} users, seed {seeds[0]})"
            )
    return sentences


def render(document: Mapping[str, Any]) -> str:
    """The Markdown of a results document."""
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    lines = [f"# {document['title']}", "", f"Machine: {machine}.", ""]
    for table in document["tables"]:
        lines += [f"## {table['title']}", "", *_markdown_table(table), ""]
        lines += [f"- {sentence}" for sentence in table["comparisons"]]
        lines += [""] * bool(table["comparisons"])
        lines += ["Settings:", ""]
        lines += [f"- {_settings(row)}" for row in table["rows"]] + [""]
    return "\n".join(lines)


def _markdown_table(table: Mapping[str, Any]) -> list[str]:
    columns = ["model"]
    columns += [
        f"{SLICES[name]} {metric.upper()}" for name in table["slices"] for metric in METRICS
    ]
    columns += ["training s", "CPU s", "peak GB", "seeds"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in table["rows"]:
        cells = [f"**{row['name']}**" if row["peer"] == OURS else row["name"]]
        if row["slices"]:
            cells += [_figure(row["slices"][s][m]) for s in table["slices"] for m in METRICS]
            limit = "*" if any(notes.get("limit") for notes in row["notes"]) else ""
            cells += [f"{row['fit_s']:.0f}{limit}", f"{row['cpu_s']:.0f}", f"{row['peak_gb']:.1f}"]
            cells += [", ".join(map(str, row["seeds"]))]
        else:
            why = f"broken: {row['reason']}" if row["reason"] else "not run yet"
            cells += [why.replace("|", "/")]
            cells += [""] * (len(columns) - 2)
        lines.append(f"| {' | '.join(cells)} |")
    if any(notes.get("limit") for row in table["rows"] for notes in row.get("notes", ())):
        lines += ["", "\\* ended by the plan's budget; the best epoch so far."]
    return lines


def _figure(value: Mapping[str, Any]) -> str:
    """.1099 (.102 – .118), and the deviation over seeds where there is one."""
    deviation = value["deviation"]
    spread = "" if deviation is None else f" ± {_short(deviation, 4)}"
    interval = f"({_short(value['low'], 3)}–{_short(value['high'], 3)})"
    return f"{_short(value['mean'], 4)}{spread} {interval}"


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def _settings(row: Mapping[str, Any]) -> str:
    if not row["slices"]:
        return f"{row['name']}: {row['origin']}"
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    settings = json.dumps(row["settings"], ensure_ascii=False)
    epochs = [_epochs(notes) for notes in row["notes"] if "epochs" in notes]
    trained = f"; epochs trained: {', '.join(epochs)}" if epochs else ""
    partly = f"; a seed broke: {row['reason']}" if row["reason"] else ""
    return f"{row['name']} ({versions}): {row['origin']}; `{settings}`{trained}{partly}"


def _epochs(notes: Mapping[str, Any]) -> str:
    """How many, and which was taken: the last one says that validation was still rising."""
    best = f" (the best {notes['best_epoch']})" if "best_epoch" in notes else ""
    return f"{notes['epochs']}{best}"


def _write(path: Path, text: str) -> None:
    aside = path.with_suffix(path.suffix + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
