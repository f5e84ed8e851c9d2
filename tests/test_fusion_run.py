"""Every kind of fusion by its one key: from training to lists and to an item nobody has met."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest
import torch
from compared_runs import configure, losses_of
from tiny_run import write_media

from mmrec.build import assemble
from mmrec.config import change
from mmrec.config.model import FusionConfig
from mmrec.loaded import load_run
from mmrec.recommender import Recommender
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

KINDS = get_args(FusionConfig.model_fields["kind"].annotation)


def test_these_are_all_kinds() -> None:
    assert set(KINDS) == {"latents", "mean", "concat", "gated", "late"}


@pytest.mark.parametrize("kind", KINDS)
def test_from_training_to_a_new_item(kind: str, tiny_data: Path, tmp_path: Path) -> None:
    config = change(
        configure(max_steps=30, max_epochs=30, learning_rate=3e-3), {"model.fusion.kind": kind}, "x"
    )
    torch.manual_seed(config.training.seed)
    before = dict(assemble(config, tiny_data).model.fusion.named_parameters())  # type: ignore[union-attr]
    run = tmp_path / "run"
    train(config, tiny_data, run)
    losses = losses_of(run)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    after = dict(load_run(run).model.fusion.named_parameters())  # type: ignore[union-attr]
    still = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert set(still) <= {"null", "out.null"}  # what stands for an item without media
    recommender = Recommender.load(run)
    assert len(recommender.recommend(history=["i1", "i2"], k=5)) == 5
    row = write_media(tmp_path, 99, seed=99)
    rows = [{"id": "whole", **row}, {"id": "no-picture", **row, "poster": None}]
    pl.DataFrame(rows).write_csv(tmp_path / "new.csv")
    new = recommender.new_items(tmp_path / "new.csv", tmp_path)
    scores = recommender.score(new, histories=[["i1", "i2"]])
    assert set(scores["item_id"]) == {"whole", "no-picture"} and scores["score"].is_finite().all()
    content = recommender.embed_items(new).content
    assert content is not None and not np.allclose(content[0], content[1], atol=1e-3)
