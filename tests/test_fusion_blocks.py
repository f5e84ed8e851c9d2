"""Packing, attention, dropout and the blocks of a history: parity with torch and with loops."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from fusion_inputs import HEADS, OFFSETS, D, unit_rows
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fusion.blocks import (
    ROTATION_BASE,
    Dropout,
    GatedBlock,
    HistoryAttention,
    MaskedAttention,
    Packing,
    PointwiseBlock,
    attend,
    rotate,
    round_rows,
)
from fusion.convolution import ConvolutionBlock


def as_torch(query: nn.Linear, key_value: nn.Linear, out: nn.Linear) -> nn.MultiheadAttention:
    """torch's own attention on the same weights."""
    theirs = nn.MultiheadAttention(D, HEADS, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([query.weight, key_value.weight]),
            "in_proj_bias": torch.cat([query.bias, key_value.bias]),
            "out_proj.weight": out.weight,
            "out_proj.bias": out.bias,
        }
    )
    return theirs.eval()


def test_packing_round_trip() -> None:
    packing = Packing(OFFSETS)
    rows = packing.fill(unit_rows(13))
    padded = packing.pad(rows)
    assert rows.shape == (packing.num_rows, D) and not rows[13:].any()
    assert padded.shape == (4, packing.longest, D)
    assert packing.longest >= packing.longest_history == 7
    assert packing.position.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5, 6]
    assert torch.equal(padded[3, :7], rows[6:13])
    assert not padded[0, 5:].any() and not padded[2].any()
    assert torch.equal(packing.unpad(padded), rows)


def test_rotate_equals_transformers() -> None:
    vectors = torch.randn(2, HEADS, 9, 8, generator=torch.Generator().manual_seed(0))
    speed = ROTATION_BASE ** (-torch.arange(0, 8, 2) / 8)
    angle = (torch.arange(9)[:, None] * speed).repeat(1, 2)[None]  # theirs: (1, L, W)
    wanted, _ = apply_rotary_pos_emb(vectors, vectors, angle.cos(), angle.sin())
    torch.testing.assert_close(rotate(vectors), wanted)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0)).expand(2, 40, 8)
    products = rotate(query) @ rotate(key).T  # the same two vectors at every pair of positions
    for distance in (0, 3, 25):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-4)
    assert not torch.isclose(products[0, 0], products[0, 3])


def test_causal_attention_equals_a_loop() -> None:
    torch.manual_seed(0)
    attention = HistoryAttention(D, num_heads=HEADS)
    packing = Packing(OFFSETS)
    events = packing.fill(torch.randn(13, D))
    mixed = attention(events, packing)
    query, key, value = attention.query_key_value(events).view(-1, 3, HEADS, D // HEADS).unbind(1)
    for start, stop in pairwise(OFFSETS.tolist()):
        for p in range(start, stop):
            heads = []
            for h in range(HEADS):
                turned_key = rotate(key[start : p + 1, h])
                turned_query = rotate(query[start : p + 1, h])[-1]
                weights = (turned_key @ turned_query / math.sqrt(D // HEADS)).softmax(0)
                heads.append(weights @ value[start : p + 1, h])
            wanted = attention.out(torch.cat(heads))
            torch.testing.assert_close(mixed[p], wanted, rtol=1e-5, atol=1e-6)


def test_masked_attention_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = MaskedAttention(D, num_heads=HEADS)
    theirs = as_torch(ours.query, ours.key_value, ours.out)
    queries, tokens = torch.randn(4, 3, D), torch.randn(4, 6, D)
    mask = torch.rand(4, 6) < 0.6
    mask[:, 2] = True
    wanted, _ = theirs(queries, tokens, tokens, key_padding_mask=~mask)
    torch.testing.assert_close(ours(queries, tokens, mask), wanted, rtol=1e-5, atol=1e-6)
    wanted, _ = theirs(queries, tokens, tokens)
    torch.testing.assert_close(ours(queries, tokens), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "masked"])
def test_attention_under_autocast_is_that_of_fp32(causal: bool) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(3, HEADS, 24, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    exact_parts = [part.detach().float().requires_grad_() for part in parts]
    mask = None if causal else torch.rand(3, 1, 1, 24) < 0.6
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(*parts, attn_mask=mask, is_causal=causal)
    exact = F.scaled_dot_product_attention(*exact_parts, mask, is_causal=causal)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, exact.bfloat16(), rtol=0, atol=0)
    grads = torch.autograd.grad(mixed.float().sum(), parts)
    exact_grads = torch.autograd.grad(exact.sum(), exact_parts)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        torch.testing.assert_close(grad.float(), exact_grad, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chance", [0.1, 0.3, 0.5])
def test_dropout_keeps_its_share_and_the_mean(chance: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.ones(401, 499, dtype=dtype, requires_grad=True)  # no multiple of four
    dropped = Dropout(chance)(values)
    scale = torch.tensor(1 / (1 - chance)).to(dtype)
    assert set(dropped.unique().tolist()) == {0.0, scale.item()}
    kept = dropped > 0
    deviation = math.sqrt(chance * (1 - chance) / values.numel())
    assert abs(kept.float().mean() - (1 - chance)) < 4 * deviation
    # neighbours share a random word, and yet fall independently
    for step in (1, 2, 3):
        both = (kept[:, step:] & kept[:, :-step]).float().mean()
        assert abs(both - (1 - chance) ** 2) < 5 * deviation
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    assert torch.equal(gradient, dropped.detach())


def test_dropout_is_a_function_of_the_seed_and_off_in_use() -> None:
    dropout, values = Dropout(0.4), torch.randn(50, 7)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(dropout(values))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(dropout.eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    assert not Dropout(1.0)(values).any()


def test_gates_shut_and_open_their_branch() -> None:
    block = GatedBlock(D, num_heads=HEADS, dropout=0.0)
    packing = Packing(OFFSETS)
    events = packing.fill(torch.randn(13, D))

    def with_gates(attention: float, feed_forward: float) -> Tensor:
        with torch.no_grad():
            gates = (block.attention_gate, attention), (block.feed_forward_gate, feed_forward)
            for gate, size in gates:
                gate.weight.zero_()
                gate.bias.fill_(size)
        result: Tensor = block(events, packing)
        return result

    assert torch.equal(with_gates(-200.0, -200.0), events)
    attended = events + block.attention(block.attention_norm(events), packing)
    torch.testing.assert_close(with_gates(200.0, -200.0), attended)
    value, switch = block.feed_forward_in(block.feed_forward_norm(events)).chunk(2, dim=-1)
    fed = events + block.feed_forward_out(value * F.silu(switch))
    torch.testing.assert_close(with_gates(-200.0, 200.0), fed)


def test_pointwise_block_equals_a_loop() -> None:
    torch.manual_seed(0)
    block = PointwiseBlock(D, num_heads=HEADS, dropout=0.0, max_length=8)
    packing = Packing(OFFSETS)
    events = packing.fill(torch.randn(13, D))
    result = block(events, packing)
    parts = F.silu(block.gate_query_key_value(block.norm(events)))
    gate, query, key, value = parts.view(-1, 4, HEADS, D // HEADS).unbind(1)
    for start, stop in pairwise(OFFSETS.tolist()):
        for p in range(start, stop):
            mixed = torch.zeros(HEADS, D // HEADS)
            for h in range(HEADS):
                for q in range(start, p + 1):
                    product = query[p, h] @ key[q, h] + block.distance_bias[h, p - q]
                    mixed[h] += F.silu(product) / 8 * value[q, h]
            branch = block.out(block.mixed_norm(mixed.flatten()) * gate[p].flatten())
            torch.testing.assert_close(result[p], events[p] + branch, rtol=1e-5, atol=1e-5)


def test_earlier_events_are_those_of_the_same_history() -> None:
    packing = Packing(OFFSETS)
    rows = packing.fill(unit_rows(13))
    for distance in (0, 1, 4, 7, 1000):
        moved = packing.earlier(rows, distance)
        assert moved.shape == rows.shape
        for start, stop in pairwise(OFFSETS.tolist()):
            for p in range(start, stop):
                wanted = rows[p - distance] if p - distance >= start else torch.zeros(D)
                assert torch.equal(moved[p], wanted)


def test_rows_by_time_are_those_of_torch() -> None:
    lengths = torch.tensor([2, 5, 3, 5])
    events = torch.arange(15)
    packing = Packing(torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]))
    rows, batch_sizes = packing.by_time
    theirs = pack_sequence(list(events.split(lengths.tolist())), enforce_sorted=False)
    assert batch_sizes.tolist() == theirs.batch_sizes.tolist() == [4, 4, 3, 2, 2]
    for at, step in enumerate(rows.split(batch_sizes.tolist())):
        # of two histories of one length either may come first
        assert set(step.tolist()) == set(theirs.data.split(batch_sizes.tolist())[at].tolist())
    assert Packing(OFFSETS).by_time[0].tolist() == [6, 0, 5, 7, 1, 8, 2, 9, 3, 10, 4, 11, 12]


def test_convolution_block_equals_a_loop() -> None:
    torch.manual_seed(0)
    block = ConvolutionBlock(D, dilation=2, dropout=0.0)
    packing = Packing(OFFSETS)
    events = packing.fill(torch.randn(13, D))
    result = block(events, packing)

    def convolved(history: Tensor, mix: nn.Linear, dilation: int) -> Tensor:
        rows = []
        for p in range(len(history)):
            total = mix.bias
            for tap in range(3):
                if p - tap * dilation >= 0:
                    weight = mix.weight[:, tap * D : (tap + 1) * D]
                    total = total + weight @ history[p - tap * dilation]
            rows.append(total)
        return torch.stack(rows)

    for start, stop in pairwise(OFFSETS.tolist()):
        if start == stop:
            continue
        history = events[start:stop]
        hidden = F.relu(block.first_norm(convolved(history, block.first.mix, 2)))
        branch = F.relu(block.second_norm(convolved(hidden, block.second.mix, 4)))
        torch.testing.assert_close(result[start:stop], history + branch, rtol=1e-5, atol=1e-5)
        # and torch's own convolution, whose last tap is the newest event
        weight = block.first.mix.weight.view(D, 3, D).flip(1).transpose(1, 2)
        padded = F.pad(history.T[None], (4, 0))
        theirs = F.conv1d(padded, weight, block.first.mix.bias, dilation=2)[0].T
        torch.testing.assert_close(convolved(history, block.first.mix, 2), theirs)


def test_number_of_histories_and_events_sets_few_shapes() -> None:
    shapes = {
        (packing.num_rows, packing.longest)
        for length in range(1, 65)
        for packing in [Packing(torch.tensor([0, 64, 64 + length, 128 + length]))]
    }
    assert len(shapes) == 1  # what a CPU keeps for every new shape would fill its memory


def test_rows_come_in_few_sizes_with_little_room_to_spare() -> None:
    sizes = {number: round_rows(number) for number in range(40_000)}
    assert all(size >= number for number, size in sizes.items())
    assert all(size <= max(256, 1.125 * number + 1) or size - number < 256
               for number, size in sizes.items())  # fmt: skip
    # multiples of 256 below 4,096, then eight an octave
    assert len(set(sizes.values())) == 16 + 8 + 8 + 8 + 2
    assert [round_rows(n) for n in (0, 1, 256, 257, 4097, 25_600)] == [
        256, 256, 256, 512, 4608, 26_624,
    ]  # fmt: skip
