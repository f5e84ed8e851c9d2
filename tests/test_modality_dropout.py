"""Modalities dropped in training: what losing the picture costs when the model is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.simulated.source import draw_log
from benchmarks.simulated.tastes import stamps
from data_prep.prepare import prepare
from mmrec.config import parse_config
from mmrec.evaluation.ablation import knock_out
from mmrec.evaluation.protocol import load_cases, training_popularity
from mmrec.loaded import load_run, open_source
from mmrec.training.train import train

NUM_ITEMS, NUM_TOPICS, NUM_USERS, EVENTS_PER_USER = 300, 12, 500, 16
# length of what a vector says of the topic, beside unit noise in each of 16 directions
LOUDNESS = {"picture": 8.0, "sound": 3.0, "text": 3.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated catalogue whose topics the picture shows best; sound and text say them too.

    The media are vectors: encoders that still have to learn what a picture shows take minutes.
    """
    folder = tmp_path_factory.mktemp("dropout")
    rng = np.random.default_rng(0)
    topic = np.arange(NUM_ITEMS) % NUM_TOPICS
    codes = {m: rng.normal(size=(NUM_TOPICS, 16)) / 4 for m in LOUDNESS}  # of length one or so
    items = pl.DataFrame(
        {
            "item_id": [f"i{k}" for k in range(NUM_ITEMS)],
            **{
                medium: (loud * codes[medium][topic] + rng.normal(size=(NUM_ITEMS, 16))).tolist()
                for medium, loud in LOUDNESS.items()
            },
        }
    )
    (folder / "source").mkdir()
    items.write_parquet(folder / "source" / "items.parquet")
    told = items.with_columns(
        pl.Series("subcategory", [f"t{k}" for k in topic]), sound_kind=pl.lit("")
    )
    draw_log(
        told, stamps, num_users=NUM_USERS, events_per_user=EVENTS_PER_USER, seed=0
    ).write_parquet(folder / "source" / "log.parquet")
    catalogue = {
        "name": "dropout",
        "kind": "simulated",
        "repeats": "forbid",
        "items": {"table": "items.parquet", "id": "item_id", "vectors": {m: m for m in LOUDNESS}},
        "interactions": {"table": "log.parquet", "user": "user_id", "item": "item_id",
                         "order": "position"},
        "split": {"protocol": "leave_one_out", "cold_validation": 0.1, "cold_test": 0.2},
    }  # fmt: skip
    (folder / "catalogue.yaml").write_text(json.dumps(catalogue), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    return folder / "data"


def with_and_without_picture(
    data: Path, run: Path, kind: str, modality_dropout: float
) -> tuple[float, float]:
    """NDCG@10 among new items of a trained run: as it is, and with no item's picture shown."""
    config = parse_config(
        {
            "name": "dropout",
            "encoders": {f"vector.{medium}": {"kind": "vector"} for medium in LOUDNESS},
            "data": {"max_history": 40},
            "model": {
                "item": "content",
                "width": 32,
                "temperature": 0.2,
                "fusion": {
                    "kind": kind,
                    "num_latents": 2,
                    "num_heads": 2,
                    "feature_dropout": 0.0,
                    "modality_dropout": modality_dropout,
                },
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.1},
            },
            "training": {
                "max_epochs": 8,
                "batch_size": 64,
                "fresh_items": 128,
                "learning_rate": 5e-3,
                "cold_weight": 1.0,
                "warmup_steps": 10,
                "precision": "fp32",
                "evaluate_every": 8,
            },
            # asked is what the fusion tells; a share chosen on thirty items would add its noise
            "evaluation": {"expected_popularity": False},
        }
    )
    train(config, data, run)
    loaded = load_run(run)
    assert loaded.data is not None and loaded.split is not None
    source = open_source(loaded)
    assert source is not None
    assert loaded.model.completion is not None
    # asked is what the fusion makes of the rest by itself, of new items too
    loaded.model.completion.maps.zero_()
    loaded.model.completion.maps_of_new.zero_()
    cases = load_cases(loaded.data, loaded.split, "test")
    rows = knock_out(loaded, source, cases, training_popularity(loaded.split))
    ndcg = {row.name: row.ndcg["cold_among_cold"] for row in rows}
    whole, without = ndcg["all media"], ndcg["without vector.picture"]
    assert whole is not None and without is not None
    return whole, without


# where the media are only added up, a missing one leaves the others as they are: nothing to learn
@pytest.mark.parametrize("kind", ["latents", pytest.param("concat", marks=pytest.mark.slow)])
def test_dropped_modalities_make_it_cheaper_to_lose_the_picture(
    kind: str, data: Path, tmp_path: Path
) -> None:
    whole, without = with_and_without_picture(data, tmp_path / "whole", kind, 0.0)
    dropped = with_and_without_picture(data, tmp_path / "dropped", kind, 0.5)
    assert dropped[0] - dropped[1] < whole - without - 0.01, (whole, without, dropped)
    assert dropped[1] > without  # it is better without pictures, and not just worse with them
