"""Throughput beside the peers: what is compared is equal, and the table says it right."""

from __future__ import annotations

import pytest

from benchmarks.peers.throughput import ROOT, SIDES, SIZES, ratios, render
from mmrec.config import load_config


def test_our_sides_have_the_sizes_that_the_peers_are_given() -> None:
    ours = [side for side in SIDES if side.peer == "mmrec"]
    assert {side.peer for side in SIDES} == {"rectools", "recbole", "mmrec"} and len(ours) == 3
    for side in ours:
        config = load_config(ROOT / "configs" / "movielens-1m-id.yaml", side.changes)
        history = config.model.history
        assert SIZES == {
            "width": config.model.width,
            "blocks": history.num_blocks,
            "heads": history.num_heads,
            "length": config.data.max_history,
            "batch_size": config.training.batch_size,
            "dropout": history.dropout,
        }


def test_ratios_are_taken_round_by_round() -> None:
    names = [side.name for side in SIDES[:2]]
    rates = {names[0]: [1000.0, 2000.0, 4000.0], names[1]: [3000.0, 2000.0, 8000.0]}
    assert ratios(rates) == {names[0]: 1.0, names[1]: pytest.approx(2.0)}  # of 3, 1 and 2
    assert render(rates).splitlines()[3] == f"| {names[1]} | 3,000 | 2.00 |"
