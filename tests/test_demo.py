"""The demo end to end at a small size, and what its learning problem must show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from mmrec.config import Config, parse_config
from mmrec.demo import demo_config, run_demo


def shortened(epochs: int, **sections: dict[str, object]) -> Config:
    """The demo's settings with its small encoders, for fewer epochs."""
    path = Path(__file__).resolve().parent.parent / "mmrec" / "demo.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["data"]["num_workers"] = 0
    document["training"] |= {"max_epochs": epochs, "evaluate_every": epochs}
    for name, fields in sections.items():
        document[name] |= fields
    return parse_config(document, "demo.yaml")


def test_demo_settings_follow_installed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrec.demo.folder_of", lambda name: None)
    assert {each.kind for each in demo_config().encoders.values()} == {"small"}
    assert {each.trainable_blocks for each in demo_config().encoders.values()} == {"all"}
    monkeypatch.setattr("mmrec.demo.folder_of", lambda name: Path("anywhere"))
    encoders = demo_config().encoders
    assert encoders["text"].weights == "minilm" and encoders["image"].kind == "timm"
    assert encoders["text"].trainable_blocks == 0


def test_demo_runs_every_stage(tmp_path: Path) -> None:
    said = run_demo(tmp_path / "demo", num_items=120, num_users=80, config=shortened(1))
    out = tmp_path / "demo"
    assert "simulated" in said and "report" in said
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "simulated" in report and "with media left out" in report and "data:image" in report
    metrics = json.loads((out / "run" / "metrics-test.json").read_text(encoding="utf-8"))
    assert set(metrics["models"]) >= {"mmrec", "random", "popularity", "content_knn"}
    for slice_name in ("all", "warm", "cold", "cold_among_cold"):
        assert metrics["models"]["mmrec"][slice_name]["num_targets"] > 0
    scores = pl.read_parquet(out / "scores.parquet")
    assert {"user_id", "item_id", "score", "rank", "modalities"} <= set(scores.columns)
    assert scores["item_id"].n_unique() > 10
    exported = pl.read_parquet(out / "export" / "items.parquet")
    assert exported.height == 120
    lengths = np.linalg.norm(np.array(exported["content_embedding"].to_list()), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-4)


@pytest.mark.slow
def test_trained_encoders_beat_random_frozen_ones(tmp_path: Path) -> None:
    """A model that ignores what the media show cannot rank items nobody has met."""

    def cold(config: Config, folder: str) -> float:
        out = tmp_path / folder
        run_demo(out, config=config)
        metrics = json.loads((out / "run" / "metrics-test.json").read_text(encoding="utf-8"))
        value: float = metrics["models"]["mmrec"]["cold_among_cold"]["ndcg@10"]
        return value

    trained = shortened(12)
    document = trained.model_dump()
    for encoder in document["encoders"].values():
        encoder["trainable_blocks"] = 0
    assert cold(trained, "trained") > 1.5 * cold(parse_config(document), "frozen")
