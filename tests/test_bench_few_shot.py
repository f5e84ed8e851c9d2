"""The curve of few labelled examples: what is learnt from, what is asked, and a small run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.few_shot import run as few_shot
from benchmarks.few_shot.run import METHODS, SHOTS, Row, main, read_names, render, split
from mmrec.config import EncoderConfig

pytestmark = pytest.mark.usefixtures("restored_torch")

THINGS = ("river", "engine")


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Two classes of twenty names that a word tells apart, one name twice, one class of two."""
    lines = ["item_id,category,name_en"]
    for number in range(20):
        lines += [f"{number:02},{thing},a {thing} number {number}" for thing in THINGS]
    lines += ["x1,river,a river number 3", "x2,moon,a moon", "x3,moon,another moon"]
    folder = tmp_path / "stamps"
    folder.mkdir()
    (folder / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_names_are_different_and_classes_large_enough(stamps: Path) -> None:
    names = read_names(stamps / "items.csv")
    assert names.classes == ["engine", "river"] and len(set(names.texts)) == len(names.texts) == 40
    assert np.bincount(names.labels).tolist() == [20, 20]


def test_fewer_examples_are_among_more_and_all_are_asked_the_same(stamps: Path) -> None:
    names = read_names(stamps / "items.csv")
    before: set[int] = set()
    for shots in SHOTS:
        learnt, asked = split(names, shots=shots, draw=3)
        assert np.bincount(names.labels[learnt]).tolist() == [shots, shots]
        assert len(asked) == 8 and not set(asked.tolist()) & set(learnt.tolist())
        assert before <= set(learnt.tolist())
        before = set(learnt.tolist())
        assert torch.equal(asked, split(names, shots=1, draw=3)[1])
    assert not torch.equal(split(names, shots=4, draw=4)[0], split(names, shots=4, draw=3)[0])


def test_table_has_means_and_deviations(stamps: Path) -> None:
    rows = [Row("lora", 4, draw, accuracy) for draw, accuracy in enumerate((0.5, 0.7))]
    line = render(rows, read_names(stamps / "items.csv"), {"lora": 0.001}).splitlines()[6]
    assert line == "| 4 | – | – | 0.600 ± 0.141 | – |"


def test_a_small_run_learns_writes_and_draws(
    stamps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, int | float | str | bool] = {"width": 16, "num_layers": 1, "num_heads": 2}
    monkeypatch.setattr(few_shot, "ENCODER", EncoderConfig(kind="small", options=options))
    monkeypatch.setattr(few_shot, "install_weights", lambda _: None)
    out = tmp_path / "out"
    asked = ["--data", str(stamps.parent), "--out", str(out), "--draws", "0", "--rate", "full=0.01"]
    assert main(asked) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["rates"]["full"] == 0.01 and len(document["rows"]) == len(METHODS) * len(SHOTS)
    most = {row["method"]: row["accuracy"] for row in document["rows"] if row["shots"] == 16}
    assert most["full"] > 0.9  # chance is a half
    with Image.open(out / "curve.png") as picture:
        assert picture.size[0] > 600
    with pytest.raises(SystemExit):
        main([*asked, "--rate", "fll=1"])
