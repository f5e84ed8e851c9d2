"""Histories read both ways: what is hidden, what is told of it, and what such a run is good for."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fusion.blocks import HistoryAttention, Packing, rotate
from fusion.history import HistoryEncoder
from mmrec.build import assemble
from mmrec.config import Config, change
from mmrec.data.batch import hide_some
from mmrec.errors import ConfigError
from mmrec.evaluation.command import evaluate_run
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.training.objective import compute_losses
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")

D, HEADS = 16, 2
OFFSETS = torch.tensor([0, 5, 6, 6, 13])
BLOCKS = pytest.mark.parametrize("block", ["gated", "plain"])


def make_history(block: str = "gated", *, max_length: int = 8) -> HistoryEncoder:
    torch.manual_seed(1)
    history = HistoryEncoder(
        D, max_length=max_length, num_blocks=2, num_heads=HEADS, dropout=0.3,
        block=block, both_ways=True,  # type: ignore[arg-type]
    )  # fmt: skip
    return history.eval()


def unit_rows(count: int, seed: int = 4) -> Tensor:
    return F.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def configure(item: str = "both", **settings: Any) -> Config:
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    return change(tiny_config(item), {"model.history.both_ways": True, **settings}, "test")


# the user model


def test_attention_equals_a_loop() -> None:
    torch.manual_seed(0)
    attention = HistoryAttention(D, num_heads=HEADS, both_ways=True)
    packing = Packing(OFFSETS)
    events = packing.fill(torch.randn(13, D))
    mixed = attention(events, packing)
    query, key, value = attention.query_key_value(events).view(-1, 3, HEADS, D // HEADS).unbind(1)
    for start, stop in pairwise(OFFSETS.tolist()):
        for p in range(start, stop):
            heads = []
            for h in range(HEADS):
                turned_query = rotate(query[start:stop, h])[p - start]
                products = rotate(key[start:stop, h]) @ turned_query
                weights = (products / math.sqrt(D // HEADS)).softmax(0)
                heads.append(weights @ value[start:stop, h])
            wanted = attention.out(torch.cat(heads))
            torch.testing.assert_close(mixed[p], wanted, rtol=1e-5, atol=1e-6)


@BLOCKS
def test_packed_equals_each_history_alone(block: str) -> None:
    history, items = make_history(block), unit_rows(13)
    hidden = torch.arange(13) % 3 == 1
    together = history(items, OFFSETS, hidden=hidden)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(13))
    for start, stop in pairwise(OFFSETS.tolist()):
        alone = history(
            items[start:stop], torch.tensor([0, stop - start]), hidden=hidden[start:stop]
        )
        torch.testing.assert_close(together[start:stop], alone, rtol=0, atol=1e-6)


@BLOCKS
def test_a_hidden_item_is_looked_at_by_nobody_and_a_shown_one_by_all(block: str) -> None:
    history, items = make_history(block), unit_rows(13)
    hidden = torch.zeros(13, dtype=torch.bool)
    hidden[[1, 9]] = True
    states = history(items, OFFSETS, hidden=hidden)
    other = items.clone()
    other[hidden] = unit_rows(2, seed=99)
    assert torch.equal(history(other, OFFSETS, hidden=hidden), states)
    other[12] = unit_rows(1, seed=98)[0]  # a later event of the last history
    changed = ~torch.isclose(history(other, OFFSETS, hidden=hidden), states).all(1)
    assert changed.tolist() == [False] * 6 + [True] * 7


@BLOCKS
def test_query_hides_one_more_event_behind_the_last(block: str) -> None:
    history, items = make_history(block), unit_rows(9)
    found = history.query(items, torch.tensor([0, 8, 9]))
    for row, (start, stop) in enumerate([(0, 8), (8, 9)]):
        longer = torch.cat(
            [items[start:stop], unit_rows(1, seed=99)]
        )  # what stands there is hidden
        hidden = torch.arange(len(longer)) == len(longer) - 1
        states = history(longer, torch.tensor([0, len(longer)]), hidden=hidden)
        torch.testing.assert_close(found[row], states[-1], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="history of 10 events: at most 8"):
        history.query(unit_rows(9), torch.tensor([0, 9]))


def test_a_token_in_front_is_seen_by_hidden_events() -> None:
    history, items, offsets = make_history(), unit_rows(6), torch.tensor([0, 2, 6])
    one, other = (history.query(items, offsets, unit_rows(1, seed=seed)) for seed in (7, 8))
    assert one.shape == (2, D) and not torch.isclose(one, other).all(1).any()


@pytest.mark.parametrize("block", ["pointwise", "gru", "cnn"])
def test_blocks_that_read_forwards_only_are_refused(block: str) -> None:
    with pytest.raises(ValueError, match=f"block '{block}' reads forwards only"):
        make_history(block)
    with pytest.raises(ConfigError, match=f"block '{block}' reads forwards only; set block=gated"):
        configure("id", **{"model.history.block": block})


# what a step hides


def test_hidden_events_are_a_share_of_those_allowed_and_never_none() -> None:
    random = np.random.default_rng(0)
    allowed = np.arange(20_000) % 4 != 0
    hidden = hide_some(allowed, 0.3, random)
    assert not hidden[~allowed].any()
    assert hidden[allowed].mean() == pytest.approx(0.3, abs=0.01)
    few = np.array([True, True, False])
    assert [hide_some(few, 1e-9, random).tolist() for _ in range(2)] == [[False, True, False]] * 2
    assert not hide_some(np.zeros(3, np.bool_), 0.5, random).any()


def test_steps_hide_the_same_at_any_number_of_ranks_and_another_thing_each_epoch(
    tiny_data: Path,
) -> None:
    config = configure("id", **{"training.hidden_share": 0.4})
    alone = assemble(config, tiny_data).stream
    parts = [assemble(config, tiny_data, rank=rank, world=2).stream for rank in range(2)]
    chosen = []
    for epoch in range(2):
        for stream in (alone, *parts):
            stream.epoch = epoch
        for whole, *shares in zip(alone, *parts, strict=True):
            assert whole.num_counted == int(whole.counted.sum()) == shares[0].num_counted
            assert sum(int(each.counted.sum()) for each in shares) == whole.num_counted
            assert 0 < whole.num_counted < len(whole.counted)
            chosen.append(whole.counted)
    assert len({tuple(each.tolist()) for each in chosen}) == len(chosen)


@pytest.mark.parametrize("candidates", [None, 64])
def test_loss_equals_a_slow_loop(tiny_data: Path, candidates: int | None) -> None:
    config = configure("id", **{"model.history.dropout": 0.0, "training.candidates": candidates})
    assembly = assemble(config, tiny_data)
    model, batch = assembly.model, next(iter(assembly.stream))
    model.eval()
    found = compute_losses(
        model, batch, None, config.training, modality_dropout=0.0, repeats_forbidden=True
    )
    losses = []
    with torch.no_grad():
        items, bias = model.embeddings(None), model.bias(model.counts)
        for start, stop in pairwise(batch.offsets.tolist()):
            events = [int(batch.inputs[start]), *batch.targets[start:stop].tolist()]
            is_hidden = [False, *batch.counted[start:stop].tolist()]
            states = model.history(
                items[events], torch.tensor([0, len(events)]), hidden=torch.tensor(is_hidden)
            )
            for place, answer in enumerate(events):
                if not is_hidden[place]:
                    continue
                logits = items @ states[place] / model.temperature + bias
                # the last event of a window is no input, so the loss does not know that it was met
                logits[[row for row in events[:-1] if row != answer]] = -math.inf
                losses.append(float(logits.logsumexp(0) - logits[answer]))
    assert found.num_targets == len(losses) == batch.num_counted
    assert float(found.loss.detach()) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


# runs


def test_from_training_to_use(tiny_data: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    train(configure(), tiny_data, run)
    assert evaluate_run(run)["models"]["mmrec"]["warm"]["ndcg@10"] > 0
    export_run(run, out, bundle=True)
    recommender, served = Recommender.load(run), Recommender.load(out / "bundle")
    known = recommender.recommend("u7", k=5)
    assert known == served.recommend("u7", k=5) and known[0].basis == "history"
    there, back = ["i1", "i2", "i8", "i9"], ["i9", "i8", "i2", "i1"]
    vectors = recommender.embed_users([there, back])
    assert not np.allclose(vectors[0], vectors[1])


def test_a_run_that_reads_forwards_may_start_from_one_that_reads_both_ways(
    tiny_data: Path, tmp_path: Path
) -> None:
    both, forwards = tmp_path / "both", tmp_path / "forwards"
    train(configure("id"), tiny_data, both)
    taken = load_file(both / "checkpoints" / "final" / "model.safetensors")
    assert "history.mask" in taken
    settings = {"model.history.both_ways": False, "training.start_from": str(both)}
    config = configure("id", **settings)
    weight = assemble(config, tiny_data).model.history.out.weight
    assert torch.equal(weight, taken["history.out.weight"])
    train(config, tiny_data, forwards)
    own = load_file(forwards / "checkpoints" / "final" / "model.safetensors")
    assert own.keys() == taken.keys() - {"history.mask"}
    # and the other way round
    train(configure("id", **{"training.start_from": str(forwards)}), tiny_data, tmp_path / "back")
