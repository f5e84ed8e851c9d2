"""What `mmrec train` ends with: figures on validation, those of `evaluate`, and the gap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrec.cli import main
from mmrec.config import dump_config
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.gap import training_gap
from mmrec.loaded import load_run
from mmrec.training.summary import gap_line, summarise
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]


def test_train_ends_with_a_table_on_validation(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    config, run = tmp_path / "config.yaml", tmp_path / "run"
    config.write_text(dump_config(tiny_config()))
    words = ["--quiet", "train", str(config), "--data", str(tiny_data), "--run", str(run)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["models"]) == ["before training", "after training", "popularity"]
    metrics = evaluate_run(run, split="validation")["models"]
    for ours, theirs in (("after training", "mmrec"), ("popularity", "popularity")):
        for name in ("warm", "cold"):
            for metric in ("hr@10", "ndcg@10", "mrr"):
                value = summary["models"][ours][name][metric]
                assert value == pytest.approx(metrics[theirs][name][metric]), (ours, name, metric)
    gap = training_gap(load_run(run))
    assert gap is not None and summary["gap"]["difference"] == pytest.approx(gap.difference)
    lines = printed.splitlines()
    for name, model in (("warm", "before training"), ("cold", "popularity")):
        ndcg = summary["models"][model][name]["ndcg@10"]
        (row,) = [line for line in lines if line.split("  ")[0] == name and model in line]
        assert f"{ndcg:.4f}" in row
    assert lines[-2] == gap_line(summary) and lines[-1].startswith(f"trained {run}; next: mmrec")
    assert not (run / "metrics-test.json").exists()  # the test is looked at by evaluate alone


def test_validation_of_a_share_is_that_of_its_users(tiny_data: Path, tmp_path: Path) -> None:
    """The figures are those that training stopped on, not those of users it left out."""
    from tiny_run import tiny_config

    document: dict[str, Any] = tiny_config("id").model_dump()
    document["data"]["user_share"] = 0.6
    run = tmp_path / "run"
    train(type(tiny_config()).model_validate(document), tiny_data, run)
    summary = summarise(run)
    assert summary is not None
    looks = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [each["validation"] for each in looks if "validation" in each][-1]
    assert summary["models"]["after training"]["all"]["num_users"] == last["all"]["num_users"] < 30
    assert summary["gap"]["num_users"] <= last["warm"]["num_users"]


def test_a_split_without_validation_has_no_summary(
    tiny_run_id: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrec.training import summary

    whole = summary.load_cases
    nobody = np.zeros(0, dtype=np.int64)
    monkeypatch.setattr(summary, "load_cases", lambda *words: whole(*words).take(nobody))
    assert summarise(tiny_run_id) is None
    assert not (tiny_run_id / "summary.json").exists()
