"""The table of what more trained blocks give: real settings, its figures, a small run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from benchmarks.cut import run as cut
from benchmarks.cut.run import Arm, Row, curves_of, main, render, write_results
from benchmarks.runs import ROOT
from mmrec.config import Config, change, dump_config, load_config

pytest_plugins = ["tiny_run"]

PLAN = yaml.safe_load((cut.HERE / "movielens-1m.yaml").read_text(encoding="utf-8"))


def row(arm: str, seed: int, seconds: float, *ndcg: float) -> Row:
    looks = tuple(
        {name: {"hr@10": 2 * each, "ndcg@10": each} for name in cut.SLICES} for each in ndcg
    )
    return Row(arm, seed, 10, 90, seconds, 1.5, looks)


ROWS = [row("0", 0, 2.0, 0.1, 0.2), row("0", 1, 4.0, 0.1, 0.4), row("1 full", 0, 9.0, 0.2, 0.25)]


def test_every_arm_has_settings_of_its_own_and_none_is_misspelt() -> None:
    base = load_config(ROOT / PLAN["config"])
    begun = change(base, PLAN["settings"] | PLAN["start"], "start")
    assert {each.trainable_blocks for each in begun.encoders.values()} == {0}
    arms = [Arm(**each) for each in PLAN["arms"]]
    configs: list[Config] = [
        change(base, PLAN["settings"] | PLAN["arms_settings"] | arm.settings, arm.name)
        for arm in arms
    ]
    assert len({each.model_dump_json() for each in configs}) == len(arms) == 7
    assert len({arm.slug for arm in arms}) == len(arms)
    assert configs[0].encoders["text"] == begun.encoders["text"]


def test_table_and_curves_are_means_over_seeds() -> None:
    text = render(ROWS, threads=2)
    first = next(line for line in text.splitlines() if line.startswith("| 0 |"))
    assert first == "| 0 | 10 (10.0%) | 3.0 | 1.50 | .6000 | .3000 | .6000 | .3000 |"
    curves = curves_of(ROWS)
    assert [at for at, _ in curves["0"]] == [3.0, 6.0]
    assert curves["0"][1][1] == pytest.approx({name: 0.3 for name in cut.SLICES})


def test_results_and_picture_are_written(tmp_path: Path) -> None:
    write_results(ROWS, tmp_path, threads=2)
    assert json.loads((tmp_path / "results.json").read_text())["rows"][2]["arm"] == "1 full"
    with Image.open(tmp_path / "quality.png") as picture:
        assert picture.size[0] > 900


def test_without_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "name the folder above it with --data" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_arms_of_a_small_plan(tiny_source: Path, tmp_path: Path) -> None:
    from tiny_run import tiny_config

    config = tmp_path / "config.yaml"
    config.write_text(dump_config(tiny_config()), encoding="utf-8")
    plan = {
        "catalogue": str(tiny_source.parent / "catalogue.yaml"),
        "source": "source",
        "prepare": [],
        "weights": [],
        "config": str(config),
        "seeds": [0],
        "settings": {"training.evaluate_every": 1},
        "start": {"training.max_epochs": 2},
        "arms_settings": {"training.max_epochs": 2},
        "arms": [
            {"name": "0", "blocks": 0},
            {"name": "1 lora", "blocks": 1, "method": "lora"},
            {"name": "all full", "blocks": "all"},
        ],
    }
    path, out = tmp_path / "plan.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    asked = ["--plan", str(path), "--data", str(tiny_source.parent), "--out", str(out)]
    assert main(asked) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [each["arm"] for each in rows] == ["0", "1 lora", "all full"]
    assert rows[0]["trainable"] == 0 < rows[1]["trainable"] < rows[2]["trainable"]
    assert all(len(each["epochs"]) == 2 and each["seconds_an_epoch"] > 0 for each in rows)
    assert main(asked) == 0  # nothing is trained again
