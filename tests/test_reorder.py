"""Histories in another order: whole events move, each epoch anew, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import tiny_config

from data_prep.shards import History
from mmrec.build import assemble
from mmrec.config import change, parse_config
from mmrec.data.reorder import Reorder
from mmrec.errors import ConfigError
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]


def history(length: int) -> History:
    at = np.arange(length)
    return History(
        user_index=3,
        item_index=at * 10,
        time=at * 100,
        event=(at % 3).astype(np.int16),
        value=at.astype(np.float32) / 2,
        context={"place": [f"p{each}" for each in at]},
    )


def rows(record: History) -> list[tuple[Any, ...]]:
    assert record.time is not None and record.event is not None and record.value is not None
    assert record.context is not None
    columns = (record.item_index, record.time, record.event, record.value)
    return list(zip(*(each.tolist() for each in columns), record.context["place"], strict=True))


def test_events_move_whole_and_differently_each_epoch() -> None:
    record = history(20)
    reorder = Reorder(1.0, seed=0)
    seen = [rows(reorder.of(record, epoch=epoch, history=5)) for epoch in range(4)]
    assert all(sorted(each) == rows(record) for each in seen)
    assert len({tuple(each) for each in seen}) == 4
    assert rows(reorder.of(record, epoch=2, history=5)) == seen[2]  # for each of its stretches
    others = [Reorder(1.0, seed=1).of(record, epoch=2, history=5)]
    others.append(reorder.of(record, epoch=2, history=6))
    assert all(rows(each) != seen[2] for each in others)
    bare = reorder.of(History(0, np.arange(9), None, None, None, None), epoch=0, history=0)
    assert bare.time is bare.event is bare.value is bare.context is None


def test_a_share_of_the_histories_moves_in_each_epoch_others() -> None:
    record, reorder = history(20), Reorder(0.3, seed=0)
    moved = np.array(
        [
            [rows(reorder.of(record, epoch=epoch, history=row)) != rows(record)
             for row in range(500)]
            for epoch in range(3)
        ]
    )  # fmt: skip
    assert (np.abs(moved.mean(1) - 0.3) < 0.07).all()
    assert (moved[0] != moved[1]).any() and moved.any(0).mean() > 0.5


def targets(data: Path, reorder: float, max_history: int) -> list[tuple[int, ...]]:
    """Items of each stretch of an epoch, the first one before its targets."""
    config = change(
        tiny_config("id"), {"data": {"reorder": reorder, "max_history": max_history}}, "test"
    )
    stream = assemble(config, data).stream
    found = []
    for batch in stream:
        whole = zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True)
        for start, stop in whole:
            items = [*batch.inputs[start:stop].tolist(), int(batch.targets[stop - 1])]
            found.append(tuple(items))
    return found


def test_an_epoch_has_the_same_events_in_another_order(tiny_data: Path) -> None:
    plain, moved = targets(tiny_data, 0, 32), targets(tiny_data, 1, 32)
    assert plain != moved
    assert sorted(tuple(sorted(each)) for each in plain) == sorted(
        tuple(sorted(each)) for each in moved
    )
    # in stretches, which are cut from one order: every event but the first is a target once
    cut = targets(tiny_data, 1, 4)
    assert sum(len(each) - 1 for each in cut) == sum(len(each) - 1 for each in moved)


def test_what_reads_the_order_is_refused() -> None:
    for section in (
        {"model": {"signals": {"times": True}}},
        {"model": {"heads": {"click": {"kind": "binary", "positive": ["click"]}}}},
        {"training": {"shown_weight": 0.5}},
    ):
        document: dict[str, Any] = tiny_config("id").model_dump(mode="json")
        document["data"]["reorder"] = 0.5
        for name, values in section.items():
            document[name] = document[name] | values
        with pytest.raises(ConfigError, match=r"data.reorder is 0.5, but (model|training)\."):
            parse_config(document)


def test_a_run_in_another_order_is_another_run(
    tiny_data: Path, tiny_run_id: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    for name in ("one", "two"):
        config = change(tiny_config("id"), {"data": {"reorder": 1.0}}, "test")
        train(config, tiny_data, tmp_path / name)
    plain, one, two = (
        load_file(next(run.rglob("model.safetensors")))
        for run in (tiny_run_id, tmp_path / "one", tmp_path / "two")
    )
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert any(not np.array_equal(one[name], plain[name]) for name in one)
