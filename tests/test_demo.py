"""The demo end to end at a small size, and what its learning problem must show."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from mmrec.cli import main
from mmrec.config import Config, parse_config
from mmrec.demo import demo_config, run_demo
from mmrec.evaluation.evaluate import compare_models


def small_encoders(**training: object) -> Config:
    """The demo's settings as they are without installed weights, some of `training` changed."""
    path = Path(__file__).resolve().parent.parent / "mmrec" / "demo.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["data"]["num_workers"] = 0
    document["training"] |= training
    return parse_config(document, "demo.yaml")


def frozen(config: Config) -> Config:
    """The same with every encoder left at its random weights, encoded once and cached."""
    document = config.model_dump()
    for encoder in document["encoders"].values():
        encoder["trainable_blocks"] = 0
    return parse_config(document)


def test_demo_settings_follow_installed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrec.demo.folder_of", lambda name: None)
    assert {each.kind for each in demo_config().encoders.values()} == {"small"}
    assert {each.trainable_blocks for each in demo_config().encoders.values()} == {"all"}
    monkeypatch.setattr("mmrec.demo.folder_of", lambda name: Path("anywhere"))
    encoders = demo_config().encoders
    assert encoders["text"].weights == "minilm" and encoders["image"].kind == "timm"
    assert encoders["text"].trainable_blocks == 0


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it said, at a small size."""
    out = tmp_path_factory.mktemp("small") / "demo"
    config = small_encoders(max_epochs=1)
    return out, run_demo(out, num_items=120, num_users=80, config=config)


def test_the_page_on_lists_asks_for_them_as_printed(
    small_demo: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(small_demo[0].parent)
    page = Path(__file__).resolve().parent.parent / "docs" / "lists.md"
    section = page.read_text(encoding="utf-8").partition("<!-- lists:begin -->")[2]
    commands, _, rest = section.partition("<!-- lists:end -->")
    lines = [line for line in commands.splitlines() if line.startswith("mmrec ")]
    assert len(lines) >= 7
    for line in lines:
        assert main([*shlex.split(line)[1:], "--json"]) == 0, line
        items = json.loads(capsys.readouterr().out)["items"]
        assert items or "--at-least" in line, line
    code = rest.partition("```python\n")[2].partition("```")[0]
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102 - our own page
    assert len(found["recommender"].recommend("u000001", k=5, wishes=found["wishes"])) == 5


def test_demo_runs_every_stage(small_demo: tuple[Path, str]) -> None:
    out, said = small_demo
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
@pytest.mark.timeout(3600)
def test_trained_encoders_beat_random_frozen_ones(tmp_path: Path) -> None:
    """A model that ignores what the media show cannot rank items nobody has met.

    Both are trained as the demo is, on one catalogue; figures are of the cold items among
    themselves. Sixty items in random order have an NDCG@10 of .08, so what is compared is what
    each gains over that; and the difference must hold user by user.
    """
    ndcg, ranks = {}, []
    for name, config in (
        ("trained", small_encoders()),
        ("frozen", frozen(small_encoders())),
    ):
        run_demo(tmp_path / "demo", config=config)
        run = tmp_path / "demo" / "run"
        models = json.loads((run / "metrics-test.json").read_text(encoding="utf-8"))["models"]
        ndcg[name] = models["mmrec"]["cold_among_cold"]["ndcg@10"]
        ndcg["random"] = models["random"]["cold_among_cold"]["ndcg@10"]
        own = pl.read_parquet(run / "ranks-test.parquet").filter(pl.col("model") == "mmrec")
        ranks.append(own.with_columns(model=pl.lit(name)))
    gain = {name: ndcg[name] - ndcg["random"] for name in ("trained", "frozen")}
    assert gain["trained"] > max(0.02, 2 * gain["frozen"]), ndcg
    found = compare_models(
        pl.concat(ranks), "trained", "frozen", slice_name="cold_among_cold", metric="ndcg@10"
    )
    assert found.interval[0] > 0.02, found
