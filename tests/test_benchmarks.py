"""The benchmarks at reduced sizes: each runs to its end and prints figures that can be read."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
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
    "costs": {
        "cost_parameters": False,
        "cost_training_memory": False,
        "cost_training_rate": False,
        "cost_latency_p50": False,
        "cost_latency_p95": False,
        "cost_index_size": False,
    },
    "epoch": {"epoch_time_to_plain": False, "epoch_time": False, "epoch_time_plain": False},
    "export": {
        "export_raw_speed": True,
        "export_raw_speed_to_in_turn": True,
        "export_raw_rate": False,
    },
    "index": {
        "index_ivf_recall_100": True,
        "index_ivf_recall_10": True,
        "index_ivf_speed": True,
        "index_ivf_rate": False,
        "index_exact_rate": False,
        "index_ivf_build": True,
        "index_ivf_memory": True,
        "index_int8_size": True,
        "index_int8_recall_10": True,
        "index_int8_rate": False,
    },
    "inference": {
        "int8_text_size": True,
        **{
            f"{tower}_text_time_{texts}": False
            for texts in ("one", "items")
            for tower in ("int8", "bf16", "fp32")
        },
        **{f"user_{side}_p{q}": False for side in ("eager", "exported") for q in (50, 95)},
    },
    "joint": {
        "joint_step_over_bare": True,
        "joint_cut_1_speed": True,
        "joint_cut_0_speed": True,
        "joint_history_200_over_50": True,
    },
    "live": {"live_event_p95": True, "live_stock_p95": False, "live_price_p95": False},
    "long_media": {
        "long_media_prepare_memory": True,
        "long_media_prepare_time": False,
        "long_media_prepare_rate": False,
        "long_media_kept": False,
        "long_media_fill_audio_memory": True,
        "long_media_fill_audio_time": False,
        "long_media_fill_video_memory": True,
        "long_media_fill_video_time": False,
        "long_media_bare_needed_time": False,
        "long_media_bare_whole_time": False,
        "long_media_prepare_to_bare_needed": False,
        "long_media_prepare_to_bare_whole": False,
    },
    "loss": {
        "loss_time_to_plain": True,
        "loss_time": False,
        "loss_time_plain": False,
        "loss_million_memory": True,
        "loss_million_time": False,
    },
    "new_item": {
        f"new_item_{case}_p{q}": False
        for case in ("text", "image", "audio", "video", "all")
        for q in (50, 95)
    },
    "prepare": {
        "prepare_media_speed": True,
        "prepare_media_rate": False,
        "prepare_movielens_memory": True,
        "prepare_movielens_time": False,
    },
    "scale": {
        f"scale_{loss}_{figure}": False
        for loss in ("all", "drawn")
        for figure in (
            *(f"{size}_{cost}" for size in ("1e3", "1e4") for cost in ("step", "memory")),
            *(f"1e3_1e4_{cost}_slope" for cost in ("step", "memory")),
        )
    },
    "service": {
        "service_p99_ratio": True,
        **{f"service_{what}_p{q}": False for what in ("bare", "http") for q in (50, 99)},
        "service_capacity": False,
        "service_overload_200_or_429": True,
        "service_overload_p99": True,
        **{f"service_overload_{part}": False for part in ("line", "batch", "app", "caller")},
    },
    "stream": {"stream_memory_growth": True},
    "ranking": {
        "ranking_ml1m_size": True,
        "ranking_million_memory": True,
        "ranking_million_time": False,
    },
}
"""Figures of each benchmark, and whether a bar judges them."""

KEYS = set("name value unit bar ok values small config skipped machine".split())


@pytest.mark.parametrize(
    "name",
    [
        "cache",
        "costs",
        "loss",
        "ranking",
        "epoch",
        "stream",
        pytest.param("export", marks=pytest.mark.slow),
        pytest.param("index", marks=pytest.mark.slow),
        pytest.param("inference", marks=pytest.mark.slow),
        pytest.param("scale", marks=pytest.mark.slow),
        pytest.param("joint", marks=pytest.mark.slow),
        pytest.param("live", marks=pytest.mark.slow),
        pytest.param("new_item", marks=pytest.mark.slow),
        pytest.param("prepare", marks=pytest.mark.slow),
        pytest.param("service", marks=pytest.mark.slow),
        pytest.param("long_media", marks=pytest.mark.slow),
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
    assert {f["name"]: f["bar"] is not None for f in figures} == FIGURES[name]
    for figure in figures:
        assert figure.keys() == KEYS
        assert figure["ok"] is None, "a reduced size says nothing of a bar"
        assert figure["small"]
        assert (figure["value"] is None) == (figure["skipped"] is not None)
        assert figure["skipped"] or figure["value"] > 0
        assert {"cpu", "cores", "memory_gb", "torch"} <= figure["machine"].keys()


def test_every_benchmark_is_listed() -> None:
    found = {path.stem.removeprefix("bench_") for path in BENCHMARKS.glob("bench_*.py")}
    assert found == FIGURES.keys()


@pytest.mark.parametrize(
    ("script", "flags", "status", "says"),
    [
        ("report('a', [1.0], unit='s', bar=2.0, config={})", [], 0, "bars missed: none"),
        ("report('a', [3.0], unit='s', bar=2.0, config={})", [], 1, "bars missed: a,"),
        (
            "report('a', [3.0], unit='s', bar=2.0, better='higher', config={})",
            [],
            0,
            "bars missed: none",
        ),
        (
            "report('a', [1.0], unit='s', bar=2.0, better='higher', config={})",
            [],
            1,
            "bars missed: a,",
        ),
        (
            "report('a', [3.0], unit='s', bar=2.0, small=arguments('').small, config={})",
            ["--small"],
            0,
            "bars missed: none",
        ),
        ("skip('a', 'no data', unit='s', bar=2.0, config={})", [], 0, "skipped: a,"),
        ("raise SystemExit('out of memory')", [], 1, "failed: fake"),
        ("pass", [], 1, "failed: fake"),
    ],
    ids=["met", "missed", "above", "below", "small", "skipped", "crash", "no figure"],
)
def test_a_missed_bar_fails_the_run(
    script: str,
    flags: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Two benchmarks, the other of which is fine: what `make bench` ends with."""
    spec = importlib.util.spec_from_file_location("run", BENCHMARKS / "run.py")
    assert spec is not None and spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    shutil.copy(BENCHMARKS / "measure.py", tmp_path)
    fine = "report('b', [1.0], unit='s', bar=2.0, config={})"
    for name, line in (("fake", script), ("fine", fine)):
        path = tmp_path / f"bench_{name}.py"
        path.write_text(f"from measure import arguments, report, skip\n{line}\n")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "OUT", tmp_path / "runs" / "bench.jsonl")
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    assert run.main() == status
    captured = capfd.readouterr()
    assert says in captured.err
    kept = [json.loads(line) for line in run.OUT.read_text().splitlines()]
    assert [json.loads(line) for line in captured.out.splitlines()] == kept
    assert kept[-1]["name"] == "b" and all(figure.keys() == KEYS for figure in kept)
