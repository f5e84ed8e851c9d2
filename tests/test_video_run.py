"""Clips from a table to a score: prepared, trained at every cut, exported, scored when new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_catalogue import clip

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.config import parse_config
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

WITH_CLIP, WITH_SOUND = range(0, 14, 2), 0


@pytest.fixture(scope="module")
def film_data(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny catalogue, half of whose items have a clip; one of the clips has a sound track."""
    folder = tmp_path_factory.mktemp("films")
    items = pl.read_csv(tiny_source / "items.csv")
    names = []
    for number in range(len(items)):
        names.append(f"{number}.mp4" if number in WITH_CLIP else "")
        if names[-1]:
            data = clip(1 + number % 6, sound=number == WITH_SOUND)
            (folder / names[-1]).write_bytes(data)
    items = items.with_columns(pl.Series("clip", names)).drop("poster", "sound")
    items.write_csv(folder / "items.csv")
    (folder / "log.csv").write_bytes((tiny_source / "log.csv").read_bytes())
    document = json.loads((tiny_source.parent / "catalogue.yaml").read_text())
    document["items"] |= {"image": [], "video": ["clip"], "audio": ["clip"]}
    (folder / "catalogue.yaml").write_text(json.dumps(document))
    report = prepare(folder / "catalogue.yaml", folder, folder / "data", num_workers=1)
    assert "quarantined: nothing" in report.line()  # silent clips are no fault
    return folder / "data"


def film_run(data: Path, run: Path, **encoder: Any) -> Path:
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    document = tiny_config().model_dump(mode="json")
    options = {"width": 32, "size": 32, "frames": 3}
    document["encoders"] = {
        "text": document["encoders"]["text"],
        "video": {"num_tokens": 4, "options": options, **encoder},
    }
    train(parse_config(document), data, run)
    return run


def test_a_clip_is_a_medium_and_its_track_another(film_data: Path) -> None:
    items = PreparedData.open(film_data).items
    assert np.flatnonzero(items.has("video")).tolist() == list(WITH_CLIP)
    assert np.flatnonzero(items.has("audio")).tolist() == [WITH_SOUND]


@pytest.mark.parametrize("trainable_blocks", [0, 1, "all"])
def test_from_training_to_the_score_of_a_new_clip(
    film_data: Path, tmp_path: Path, trainable_blocks: int | str
) -> None:
    run = film_run(film_data, tmp_path / "run", trainable_blocks=trainable_blocks)
    export_run(run, tmp_path / "out", bundle=True)
    source = tmp_path / "new"
    source.mkdir()
    (source / "same.mp4").write_bytes(clip(2))
    (source / "other.mp4").write_bytes(clip(6))
    (source / "broken.mp4").write_bytes(clip(5)[:40])
    table = "id,clip\nsame,same.mp4\nother,other.mp4\nbroken,broken.mp4\n"
    (source / "new.csv").write_text(table)
    found = []
    for path in (run, tmp_path / "out" / "bundle"):
        recommender = Recommender.load(path)
        scored = recommender.score(
            recommender.new_items(source / "new.csv", source), users=["u1", "u2"]
        )
        assert scored["item_id"].unique().sort().to_list() == ["other", "same"]
        assert scored["modalities"].explode().unique().to_list() == ["video"]
        found.append(scored.sort("user_id", "item_id")["score"].to_numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert len(np.unique(found[0].round(6))) > 1
