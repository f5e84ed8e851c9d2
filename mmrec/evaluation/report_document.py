"""RUN/report.json: every figure of the report, for programs.

    {schema, name, simulated, split, protocol, data_hash, checkpoint, seed,
     sentences, limits,                         what the page says
     models, intervals, tests,                  MODEL -> SLICE -> metric; 95 %; ours - other
     breakdowns, lists, before, knockout,       by counts of events; what lists are measured with
     learning, offset, sweeps, tail, variety,   curves; the gap to training
     at_costs,                                  test figures with offsets of validation
     reliability, heads, labels,                the last two by name, where the model has some
     new_users,                                 behind their first events, where some were held out
     strips, best, worst,                       ids of items, in the order shown
     costs, facts, data, quarantine,
     stability}                                 that of stability.json, where there is one

A part without input is null or empty. Numbers are SI: seconds in `*_s`, milliseconds in `*_ms`,
bytes in `*_bytes`; NDCG, HR and the like are shares.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.shards import PreparedData
from mmrec.evaluation.findings import Findings
from mmrec.evaluation.report_words import Intervals
from mmrec.evaluation.significance import PairedDifference
from mmrec.evaluation.strips import UserStrip

SCHEMA = 1


def report_document(
    metrics: Mapping[str, Any],
    findings: Findings,
    data: PreparedData,
    *,
    intervals: Intervals,
    tests: Sequence[PairedDifference],
    steps: Sequence[Mapping[str, Any]],
    sentences: Sequence[str],
    limits: Sequence[str],
    quarantine: Mapping[str, str],
    simulated: bool,
    manifest: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Gathers the content of report.json.

    Args:
        metrics: content of metrics-test.json.
        findings: of the evaluation.
        data: the prepared folder.
        intervals: MODEL -> SLICE -> metric -> (low, high).
        tests: ours against each baseline.
        steps: lines of metrics.jsonl.
        sentences: what the page says first.
        limits: what it says last.
        quarantine: what was set aside -> how much.
        simulated: the log was made up by a program.
        manifest: what the run was made with; None of runs that have none.
    """
    origin = ("split", "protocol", "data_hash", "checkpoint", "seed", "models")
    curves = {
        "loss": [[each["step"], each["loss"]] for each in steps if each.get("loss") is not None],
        "validation": [
            {"step": each["step"], "metrics": each["validation"]}
            for each in steps
            if each.get("validation")
        ],
        "gap": None if findings.gap is None else asdict(findings.gap),
    }
    return {
        "schema": SCHEMA,
        "name": data.manifest["name"],
        "simulated": simulated,
        **{name: metrics.get(name) for name in origin},
        "intervals": intervals,
        "tests": [asdict(each) for each in tests],
        "sentences": list(sentences),
        "limits": list(limits),
        "breakdowns": [asdict(each) for each in findings.breakdowns],
        "lists": {
            "diversity_by": findings.diversity_by,
            "miscalibration_by": findings.miscalibration_by,
        },
        "exposures": [asdict(each) for each in findings.exposures],
        "before": findings.before,
        "knockout": [asdict(each) for each in findings.knockout],
        "learning": curves,
        "offset": {
            "chosen": findings.chosen_offset,
            "warm_cost": findings.warm_cost,
            "curve": [asdict(each) for each in findings.offset_curve],
        },
        "sweeps": [asdict(each) for each in findings.sweeps],
        "at_costs": [asdict(each) for each in findings.at_costs],
        "tail": {
            "popularity_share": findings.popularity_share,
            "curve": [asdict(each) for each in findings.tail_curve],
        },
        "variety": [asdict(each) for each in findings.variety_curve],
        "reliability": [asdict(each) for each in findings.reliability],
        "heads": metrics.get("heads", {}),
        "labels": metrics.get("labels", {}),
        "new_users": metrics.get("new_users"),
        "costs": None if findings.costs is None else asdict(findings.costs),
        "facts": None if findings.facts is None else asdict(findings.facts),
        "stability": None if findings.stability is None else asdict(findings.stability),
        **{
            name: [_strip(data, each) for each in strips]
            for name, strips in (
                ("strips", findings.strips),
                ("best", findings.best),
                ("worst", findings.worst),
            )
        },
        "data": data.manifest["counts"],
        "manifest": manifest,
        "quarantine": dict(quarantine),
    }


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Writes JSON aside, then renames it."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_aside(path, (text + "\n").encode())


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file aside, then renames it: nobody ever reads half of one."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(content)
    os.replace(aside, path)


def _strip(data: PreparedData, strip: UserStrip) -> dict[str, Any]:
    """A strip with the ids of items in place of their rows."""
    ids = data.items.item_ids
    return {
        key: [ids[item] for item in value]
        if isinstance(value, Sequence) and key in _ITEMS
        else value
        for key, value in asdict(strip).items()
    }


_ITEMS = ("met", "recommended", "cold", "targets")
