"""The benchmarks at reduced sizes: each runs to its end and prints figures that can be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"

FIGURES = {
    "cache": {
        "read_for_all_speed": True,
        "read_for_all_rate": False,
        "cache_fill_efficientnet_lite0_speed": True,
        "cache_fill_efficientnet_lite0_rate": False,
        "cache_fill_minilm_speed": True,
        "cache_fill_minilm_rate": False,
    },
    "epoch": {"epoch_time_to_plain": False, "epoch_time": False, "epoch_time_plain": False},
    "loss": {
        "loss_time_to_plain": True,
        "loss_time": False,
        "loss_time_plain": False,
        "loss_million_memory": True,
        "loss_million_time": False,
    },
    "prepare": {
        "prepare_media_speed": True,
        "prepare_media_rate": False,
        "prepare_movielens_memory": True,
        "prepare_movielens_time": False,
    },
    "ranking": {
        "ranking_ml1m_size": True,
        "ranking_million_memory": True,
        "ranking_million_time": False,
    },
}
"""Figures of each benchmark, and whether a bar judges them."""


@pytest.mark.parametrize(
    "name",
    [
        "cache",
        "loss",
        "ranking",
        pytest.param("epoch", marks=pytest.mark.slow),
        pytest.param("prepare", marks=pytest.mark.slow),
    ],
)
def test_small_benchmark_prints_its_figures(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"bench_{name}.py"), "--small"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = [json.loads(line) for line in ended.stdout.splitlines()]
    judged = {f["name"]: f.get("bar") is not None for f in figures if "skipped" not in f}
    skipped = {figure["name"] for figure in figures if "skipped" in figure}
    # with MovieLens-1M absent one line says so for both of its figures
    expected = {n: bar for n, bar in FIGURES[name].items() if not skipped or "movielens" not in n}
    assert judged == expected
    for figure in figures:
        assert figure["ok"] is None, "a reduced size says nothing of a bar"
        if "skipped" not in figure:
            assert figure.keys() >= {"name", "value", "bar", "ok", "machine", "config"}
            assert figure["small"] and figure["value"] > 0
            assert {"cpu", "cores", "memory_gb", "torch"} <= figure["machine"].keys()


def test_every_benchmark_is_listed() -> None:
    found = {path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")}
    assert found == FIGURES.keys()
