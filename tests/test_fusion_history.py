"""The history encoder: parity with torch, what its states know and what must not matter."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_inputs import HEADS, OFFSETS, D, unit_rows
from torch import nn

from fusion.history import HistoryEncoder, truncate

BLOCKS = pytest.mark.parametrize("block", ["gated", "plain", "pointwise", "gru", "cnn"])


def make_history(
    block: str = "gated", *, num_blocks: int = 2, max_length: int = 8
) -> HistoryEncoder:
    torch.manual_seed(1)
    history = HistoryEncoder(
        D,
        max_length=max_length,
        num_blocks=num_blocks,
        num_heads=HEADS,
        dropout=0.3,
        block=block,  # type: ignore[arg-type]
    )
    return history.eval()


@BLOCKS
def test_future_changes_no_past_state(block: str) -> None:
    history = make_history(block)
    items = unit_rows(13)
    states = history(items, OFFSETS)
    for changed in (3, 5, 9):
        other = items.clone()
        other[changed] = unit_rows(1, seed=99)[0]
        stop = int(OFFSETS[OFFSETS > changed].min())
        after = history(other, OFFSETS)
        assert torch.equal(after[:changed], states[:changed])  # bit for bit
        assert torch.equal(after[stop:], states[stop:])  # other histories neither
        assert not torch.isclose(after[changed:stop], states[changed:stop]).all(1).any()


@BLOCKS
def test_packed_equals_each_history_alone(block: str) -> None:
    history = make_history(block)
    items = unit_rows(13)
    together = history(items, OFFSETS)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(13))
    for start, stop in pairwise(OFFSETS.tolist()):
        alone = history(items[start:stop], torch.tensor([0, stop - start]))
        torch.testing.assert_close(together[start:stop], alone, rtol=0, atol=1e-6)


def test_recurrent_layers_equal_torchs_on_each_history() -> None:
    history, items = make_history("gru"), unit_rows(13).requires_grad_()
    theirs = nn.GRU(D, D, num_layers=2, batch_first=True)
    own = {
        f"{name[: -len('l0')]}l{layer}": value
        for layer, block in enumerate(history.blocks)
        for name, value in block.get_submodule("recurrence").state_dict().items()
    }
    theirs.load_state_dict(own)
    wanted = []
    for start, stop in pairwise(OFFSETS.tolist()):
        if stop > start:
            states, _ = theirs(items[None, start:stop] * math.sqrt(D))
            wanted.append(F.normalize(history.out(history.norm(states[0])), dim=-1))
    states = history(items, OFFSETS)
    torch.testing.assert_close(states, torch.cat(wanted), rtol=1e-5, atol=1e-6)
    direction = unit_rows(13, seed=5)
    (gradient,) = torch.autograd.grad((states * direction).sum(), items)
    (their_gradient,) = torch.autograd.grad((torch.cat(wanted) * direction).sum(), items)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_blocks", "reach"), [(1, 7), (2, 31)])
def test_convolutions_know_as_many_events_as_they_say(num_blocks: int, reach: int) -> None:
    history, items = make_history("cnn", num_blocks=num_blocks, max_length=40), unit_rows(40)
    offsets = torch.tensor([0, 40])
    known = history.query(items, offsets)
    for back, seen in ((reach - 1, True), (reach, False)):  # events before the last
        other = items.clone()
        other[39 - back] = unit_rows(1, seed=99)[0]
        assert torch.equal(history.query(other, offsets), known) != seen


@BLOCKS
def test_histories_without_events_give_no_states(block: str) -> None:
    history = make_history(block)
    assert history(unit_rows(0), torch.tensor([0, 0, 0])).shape == (0, D)


@BLOCKS
def test_gradient_reaches_all_of_the_user_model(block: str) -> None:
    history, items = make_history(block), unit_rows(13).requires_grad_()
    states = history(items, OFFSETS)
    torch.autograd.backward((states * unit_rows(13, seed=5)).sum(), retain_graph=True)
    for name, parameter in history.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    (gradient,) = torch.autograd.grad(states[8].sum(), items)  # third event of the last history
    assert gradient[6:9].any(1).all() and not gradient[:6].any() and not gradient[9:].any()


@BLOCKS
def test_user_model_under_autocast_is_near_that_of_fp32(block: str) -> None:
    history, items = make_history(block), unit_rows(13)
    exact = history(items, OFFSETS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = history(items, OFFSETS)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.norm(dim=-1), torch.ones(13))
    assert 0 < (rounded - exact).abs().max() < 0.03
    torch.autograd.backward((rounded * unit_rows(13, seed=5)).sum())
    for name, parameter in history.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("block", ["gru", "cnn"])
def test_heads_do_not_matter_where_there_is_no_attention(block: str) -> None:
    sizes: dict[str, Any] = {"max_length": 8, "num_blocks": 1, "dropout": 0.0}
    HistoryEncoder(D, num_heads=5, block=block, **sizes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width 16 and 5 heads"):
        HistoryEncoder(D, num_heads=5, block="plain", **sizes)


def test_query_is_the_last_state() -> None:
    history, items = make_history(), unit_rows(6)
    offsets = torch.tensor([0, 2, 6])
    assert torch.equal(history.query(items, offsets), history(items, offsets)[[1, 5]])


@BLOCKS
def test_order_of_a_history_matters(block: str) -> None:
    # in one block only the positions tell in which order the earlier events came
    history, items = make_history(block, num_blocks=1), unit_rows(5)
    offsets = torch.tensor([0, 5])
    turned = items[[1, 0, 3, 2, 4]]
    assert not torch.allclose(history.query(items, offsets), history.query(turned, offsets))


def test_too_long_history_is_refused() -> None:
    with pytest.raises(ValueError, match="9 events: at most 8.*max_history"):
        make_history()(unit_rows(9), torch.tensor([0, 9]))


def test_truncate_keeps_the_last_events() -> None:
    rows, offsets = truncate(torch.tensor([0, 5, 5, 7, 8]), 3)
    assert rows.tolist() == [2, 3, 4, 5, 6, 7]
    assert offsets.tolist() == [0, 3, 3, 5, 6]
