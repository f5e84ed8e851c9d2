"""`mmrec evaluate` on a tiny run: files, knock-outs, and lists that keep the rules."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from data_prep.shards import PreparedData
from mmrec.build import load_run, open_source
from mmrec.evaluation.command import (
    content_of_subsets,
    evaluate_run,
    initial_content,
    knock_out,
    user_strips,
)
from mmrec.evaluation.protocol import load_cases, training_popularity
from mmrec.training.validate import case_vectors

pytest_plugins = ["tiny_run"]


def test_evaluate_writes_figures_ranks_and_report(tiny_run: Path) -> None:
    document = evaluate_run(tiny_run)
    assert json.loads((tiny_run / "metrics-test.json").read_text(encoding="utf-8")) == document
    assert set(document) >= {"schema", "split", "protocol", "data_hash", "checkpoint", "seed"}
    assert "mmrec" in document["models"] and "content_knn" in document["models"]
    ranks = pl.read_parquet(tiny_run / "ranks-test.parquet")
    ours = ranks.filter(pl.col("model") == "mmrec")
    whole = document["models"]["mmrec"]["all"]
    assert whole["hr@10"] == pytest.approx((ours["rank"] <= 10).mean(), abs=0.05)
    assert (tiny_run / "report.html").stat().st_size > 10_000


def test_evaluating_validation_leaves_the_test_files_alone(tiny_run: Path) -> None:
    document = evaluate_run(tiny_run, split="validation")
    assert document["protocol"]["targets"] == "validation"
    assert (tiny_run / "metrics-validation.json").is_file()


def test_all_modalities_give_the_stored_content(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    source = open_source(loaded)
    assert source is not None and loaded.content is not None
    names = frozenset(loaded.parts)
    whole, alone = content_of_subsets(loaded, source, [names, frozenset({"text"})])
    torch.testing.assert_close(whole, loaded.content, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, alone, atol=1e-3)


def test_knock_out_has_a_row_for_each_modality(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    source = open_source(loaded)
    assert source is not None
    rows = knock_out(loaded, source, cases, training_popularity(loaded.split))
    names = [row.name for row in rows]
    assert names[0] == "all media"
    assert {"without audio", "without image", "without text", "image alone"} <= set(names)


def test_strips_show_nothing_the_user_has_met(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    strips = user_strips(loaded, cases, users, items)
    assert len(strips) == 6
    cold = set(cases.candidates[cases.candidate_is_cold].tolist())
    for strip in strips:
        row = loaded.data.user_ids.index(strip.user_id)
        history = loaded.split.full.read(row).item_index.tolist()
        seen = set(history) - set(strip.targets)
        assert not seen & set(strip.recommended)
        assert set(strip.cold) <= cold


def test_content_knn_of_trained_encoders_uses_untrained_ones(
    tiny_run_all: Path, tiny_data: Path
) -> None:
    loaded = load_run(tiny_run_all)
    source = open_source(loaded)
    content = initial_content(loaded, source)
    assert content is not None
    assert content.vectors.shape[0] == len(PreparedData.open(tiny_data).items)
    assert bool(torch.isfinite(content.vectors).all())
    again = initial_content(loaded, source)
    assert again is not None
    np.testing.assert_array_equal(content.vectors.numpy(), again.vectors.numpy())
