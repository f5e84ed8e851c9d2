"""Every file under `configs` goes the whole way, on data made for it by `every_config`.

prepare, two steps, export, recommend, and a score of items nobody has met, by the command line
alone. Encoders with pretrained weights are replaced by small ones; nothing else is.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from every_config import (
    NUM_ITEMS,
    NUM_USERS,
    Example,
    config_for,
    examples,
    item_id,
    new_rows,
    small_settings,
    write_source,
    write_table,
)

from data_prep.catalogue import load_catalogue
from mmrec.cli import main
from mmrec.config import load_config

pytestmark = pytest.mark.usefixtures("restored_torch")


@pytest.mark.parametrize("example", examples(), ids=lambda each: each.name)
def test_file_goes_the_whole_way(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = load_catalogue(example.catalogue, example.overrides[-1])
    config_file = example.config
    if config_file is None:
        config_file = tmp_path / "config.yaml"
        config_file.write_text(yaml.safe_dump(config_for(catalogue)), encoding="utf-8")
    config = load_config(config_file)
    source, data, run = (tmp_path / name for name in ("source", "data", "run"))
    items = write_source(catalogue, source, config)

    for words in example.overrides:
        prepare = ["prepare", str(example.catalogue), "--source", str(source), "--out", str(data)]
        assert main([*prepare, "--num-workers", "1", *words]) == 0
    train = ["train", str(config_file), "--data", str(data), "--run", str(run), "--no-summary"]
    assert main([*train, *small_settings(config)]) == 0
    export = tmp_path / "export"
    assert main(["export", str(run), "--out", str(export)]) == 0
    exported = pl.read_parquet(export / "items.parquet")
    assert len(exported) == NUM_ITEMS
    recommended_list_is_sound(run, capsys)

    new = new_rows(items, catalogue, {"new-1": 0, "new-2": 5})
    table = source / f"new{Path(catalogue.items.table).suffix}"
    write_table(new, table)
    out = tmp_path / "scores.parquet"
    score = ["score", str(run), "--items", str(table), "--source", str(source), "--out", str(out)]
    if config.model.item == "id":
        assert main(score) == 2  # a model of ids knows nothing of media, and says so
        assert "model.item=both" in capsys.readouterr().err
        return
    assert main(score) == 0
    users = pl.read_parquet(export / "users.parquet")
    scored_by_content(pl.read_parquet(out), exported, users, {"new-1": 0, "new-2": 5})
    assert all(
        set(names) == set(config.encoders) for names in pl.read_parquet(out)["modalities"].to_list()
    )


def recommended_list_is_sound(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["recommend", str(run), "--user", "u0", "-k", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["items"]
    assert len({each["item_id"] for each in found}) == len(found) == 5
    scores = [each["score"] for each in found]
    assert scores == sorted(scores, reverse=True) and np.isfinite(scores).all()


def scored_by_content(
    scores: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame, copied: dict[str, int]
) -> None:
    """The score of a copy under a new id is <u, c> of the exported vectors, for every user."""
    assert len(scores) == NUM_USERS * len(copied)
    content = dict(zip(items["item_id"], items["content_embedding"].to_list(), strict=True))
    vectors = dict(zip(users["user_id"], users["embedding"].to_list(), strict=True))
    expected = [
        np.dot(vectors[user], content[item_id(copied[item])])
        for user, item in scores.select("user_id", "item_id").iter_rows()
    ]
    np.testing.assert_allclose(scores["score"].to_numpy(), expected, atol=1e-4)
