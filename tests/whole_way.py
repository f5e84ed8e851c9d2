"""A catalogue file the whole way by the command line: prepared, trained, exported, used.

What comes out is held to what it must be: the score of a copy of an item under a new id is the
product of the exported vectors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from every_config import (
    NUM_ITEMS,
    NUM_USERS,
    item_id,
    new_rows,
    small_settings,
    write_source,
    write_table,
)

from data_prep.catalogue import load_catalogue
from mmrec.cli import main
from mmrec.config import load_config

COPIES = {"new-1": 0, "new-2": 5}  # ids that nobody has met, and the items whose media they have


def go_the_whole_way(
    catalogue_file: Path,
    config_file: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    prepares: Sequence[Sequence[str]] = ((),),
) -> Path:
    """prepare, two steps, export, recommend, score; returns the run.

    Args:
        catalogue_file: what data are made up for.
        config_file: of the run; its encoders with pretrained weights are replaced by small ones.
        folder: empty; source/, data/, run/ and export/ are made in it.
        capsys: of the test.
        prepares: what each `mmrec prepare` changes.
    """
    catalogue = load_catalogue(catalogue_file, prepares[-1])
    config = load_config(config_file)
    source, data, run, export = (folder / name for name in ("source", "data", "run", "export"))
    items = write_source(catalogue, source, config)
    for words in prepares:
        prepare = ["prepare", str(catalogue_file), "--source", str(source), "--out", str(data)]
        assert main([*prepare, "--num-workers", "1", *words]) == 0
    train = ["train", str(config_file), "--data", str(data), "--run", str(run), "--no-summary"]
    assert main([*train, *small_settings(config)]) == 0
    assert main(["export", str(run), "--out", str(export)]) == 0
    check_list(recommend(run, ["--user", "u0"], capsys))

    table = source / f"new{Path(catalogue.items.table).suffix}"
    write_table(new_rows(items, catalogue, COPIES), table)
    out = folder / "scores.parquet"
    score = ["score", str(run), "--items", str(table), "--source", str(source), "--out", str(out)]
    if config.model.item == "id":
        assert main(score) == 2  # a model of ids knows nothing of media, and says so
        assert "model.item=both" in capsys.readouterr().err
        return run
    assert main(score) == 0
    check_scores(pl.read_parquet(out), export)
    assert set(pl.read_parquet(out)["modalities"][0].to_list()) == set(config.encoders)
    return run


def recommend(
    run: Path, words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> list[dict[str, object]]:
    """What `mmrec recommend` lists, five items at most."""
    capsys.readouterr()
    assert main(["recommend", str(run), *words, "-k", "5", "--json"]) == 0
    items: list[dict[str, object]] = json.loads(capsys.readouterr().out)["items"]
    return items


def check_list(items: list[dict[str, object]]) -> None:
    """Five different items, best first."""
    assert len({each["item_id"] for each in items}) == len(items) == 5
    scores = np.array([each["score"] for each in items], dtype=float)
    assert np.isfinite(scores).all() and (np.diff(scores) <= 0).all()


def check_scores(scores: pl.DataFrame, export: Path) -> None:
    """Every user has a score for each copy, <u, c> of the exported vectors."""
    items, users = (pl.read_parquet(export / f"{name}.parquet") for name in ("items", "users"))
    assert len(items) == NUM_ITEMS and len(scores) == NUM_USERS * len(COPIES)
    content = dict(zip(items["item_id"], items["content_embedding"].to_list(), strict=True))
    vectors = dict(zip(users["user_id"], users["embedding"].to_list(), strict=True))
    expected = [
        np.dot(vectors[user], content[item_id(COPIES[item])])
        for user, item in scores.select("user_id", "item_id").iter_rows()
    ]
    np.testing.assert_allclose(scores["score"].to_numpy(), expected, atol=1e-4)
