"""Blocks, item fusion and the history encoder: parity with torch, and what must not matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from encoders.tokens import Tokens, masked
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
from fusion.history import HistoryEncoder, truncate
from fusion.item import (
    ConcatFusion,
    GatedFusion,
    LateFusion,
    LatentFusion,
    LateOutput,
    MeanFusion,
    Modality,
    Output,
    TokenProjection,
    drop_modalities,
)

D, HEADS = 16, 2
OFFSETS = torch.tensor([0, 5, 6, 6, 13])
WIDTHS = {"text": 6, "image": 10, "vector.clip": 4}
TOKENS = {"text": 5, "image": 4, "vector.clip": 1}
MODALITIES = {name: Modality(WIDTHS[name], TOKENS[name]) for name in WIDTHS}
OF_MEANS = {
    "mean": MeanFusion,
    "concat": ConcatFusion,
    "gated": GatedFusion,
    "late": LateFusion,
}
Fusion = LatentFusion | MeanFusion | ConcatFusion | GatedFusion | LateFusion
KINDS = ("latents", *OF_MEANS)
BLOCKS = pytest.mark.parametrize("block", ["gated", "plain", "pointwise", "gru", "cnn"])


def make_fusion(kind: str, *, dropout: float = 0.0, turned: bool = False) -> Fusion:
    torch.manual_seed(0)
    modalities = dict(reversed(MODALITIES.items())) if turned else MODALITIES
    if kind in OF_MEANS:
        fusion = OF_MEANS[kind](modalities, width=D)
        if isinstance(fusion, GatedFusion):  # gates start equal: these tests want them apart
            nn.init.normal_(fusion.gate)
            nn.init.normal_(fusion.gate_bias)
        if isinstance(fusion, LateFusion):
            nn.init.normal_(fusion.out.weight)
        return fusion
    sizes = {"width": D, "num_latents": 3, "num_layers": 2, "num_heads": HEADS}
    return LatentFusion(modalities, **sizes, dropout=dropout)


def make_tokens(num_items: int = 7) -> dict[str, Tokens]:
    """Tokens of which about a third are masked; the first of each modality is real."""
    random = torch.Generator().manual_seed(3)
    made = {}
    for name, width in WIDTHS.items():
        mask = torch.rand(num_items, TOKENS[name], generator=random) < 0.7
        mask[:, 0] = True
        values = torch.randn(num_items, TOKENS[name], width, generator=random)
        made[name] = masked(values, mask)
    return made


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


def unit_rows(count: int, seed: int = 4) -> Tensor:
    return F.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


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


# blocks


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


# history


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


# item fusion


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_modalities_does_not_matter(kind: str) -> None:
    fusion, tokens = make_fusion(kind).eval(), make_tokens()
    turned = {name: tokens[name] for name in reversed(list(tokens))}
    assert torch.equal(fusion(tokens), fusion(turned))
    assert torch.equal(fusion(tokens), make_fusion(kind, turned=True).eval()(turned))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_values_do_not_matter(kind: str) -> None:
    fusion, tokens = make_fusion(kind).eval(), make_tokens()
    filled = {  # random: a constant row would leave the first norm as zeros do
        name: Tokens(
            torch.where(each.mask[..., None], each.values, 100 * torch.randn(each.values.shape)),
            each.mask,
        )
        for name, each in tokens.items()
    }
    assert torch.equal(fusion(tokens), fusion(filled))  # bit for bit


@pytest.mark.parametrize("kind", KINDS)
def test_every_subset_is_finite_and_of_length_one(kind: str) -> None:
    fusion, tokens = make_fusion(kind).eval(), make_tokens()
    contents = []
    for size in range(1, len(WIDTHS) + 1):
        for names in combinations(WIDTHS, size):
            content = fusion({name: tokens[name] for name in names})
            torch.testing.assert_close(content.norm(dim=-1), torch.ones(7))
            contents.append(content)
    assert len(contents) == 2 ** len(WIDTHS) - 1
    for one, other in combinations(contents, 2):  # each modality adds something
        assert not torch.isclose(one, other).all(1).any()


@pytest.mark.parametrize("kind", KINDS)
def test_missing_modality_equals_leaving_it_out(kind: str) -> None:
    fusion, tokens = make_fusion(kind).eval(), make_tokens()
    keep = {name: torch.full((7,), name != "image") for name in tokens}
    left_out = {name: each for name, each in tokens.items() if name != "image"}
    torch.testing.assert_close(
        fusion(drop_modalities(tokens, keep)), fusion(left_out), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_item_without_any_medium_is_finite(kind: str) -> None:
    fusion, tokens = make_fusion(kind).eval(), make_tokens()
    nothing = {name: Tokens(each.values, each.mask & False) for name, each in tokens.items()}
    content = fusion(nothing)
    torch.testing.assert_close(content.norm(dim=-1), torch.ones(7))
    # the same for every such item, to the last bits: threads share the rows of a product unevenly
    torch.testing.assert_close(content[0], content[6], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_content_does_not_depend_on_the_batch(kind: str) -> None:
    fusion, tokens = make_fusion(kind, dropout=0.5).eval(), make_tokens()
    together = fusion(tokens)
    for item in (0, 3, 6):
        alone = fusion(
            {
                name: Tokens(each.values[item : item + 1], each.mask[item : item + 1])
                for name, each in tokens.items()
            }
        )
        torch.testing.assert_close(together[item : item + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind: str) -> None:
    fusion, tokens = make_fusion(kind), make_tokens()
    keep = {name: torch.ones(7, dtype=torch.bool) for name in tokens}
    for name in tokens:
        keep[name][0] = False  # one item has nothing, two have no picture
    keep["image"][1] = keep["image"][2] = False
    keep["text"][3] = keep["vector.clip"][4] = False
    content = fusion(drop_modalities(tokens, keep))
    torch.autograd.backward((content * unit_rows(7)).sum())
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_gives_the_content_of_fp32_and_gradients(kind: str) -> None:
    fusion, tokens = make_fusion(kind).eval(), make_tokens()
    tokens["image"] = Tokens(tokens["image"].values, tokens["image"].mask & False)
    with torch.autocast("cpu", torch.bfloat16):
        content = fusion(tokens)
    assert content.dtype == torch.float32
    torch.testing.assert_close(content, fusion(tokens), rtol=0, atol=0.02)
    torch.autograd.backward((content * unit_rows(7)).sum())
    gradients = [p.grad for p in fusion.parameters() if p.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def means_of(fusion: Fusion, tokens: Mapping[str, Tokens], item: int) -> dict[str, Tensor]:
    """Projected mean token of each modality that an item has."""
    means = {}
    for name in sorted(WIDTHS):
        mask = tokens[name].mask[item]
        if mask.any():
            projected = fusion.projections[name.replace(".", "_")](tokens[name])[item]
            means[name] = projected[mask].mean(0)
    return means


def make_gappy_tokens() -> dict[str, Tokens]:
    """Tokens of seven items; the first has none, the next three lack one modality each."""
    tokens = make_tokens()
    keep = {name: torch.ones(7, dtype=torch.bool) for name in tokens}
    for row, name in enumerate(tokens, start=1):
        keep[name][0] = keep[name][row] = False
    return drop_modalities(tokens, keep)


@torch.no_grad()
def test_gates_equal_a_loop() -> None:
    fusion, tokens = make_fusion("gated").eval(), make_gappy_tokens()
    assert isinstance(fusion, GatedFusion)
    fusion.out.mean.copy_(torch.randn(D))
    wanted = []
    for item in range(7):
        hidden, total = torch.zeros(D), 0.0
        for name, mean in means_of(fusion, tokens, item).items():
            k = sorted(WIDTHS).index(name)
            weight = math.exp(float(fusion.gate[k] @ mean + fusion.gate_bias[k]))
            hidden, total = hidden + weight * mean, total + weight
        hidden = hidden / total if total else fusion.null
        wanted.append(fusion.out.projection(hidden) - fusion.out.mean)
    torch.testing.assert_close(fusion(tokens), F.normalize(torch.stack(wanted), dim=-1))


def test_gates_start_as_a_plain_mean() -> None:
    torch.manual_seed(0)
    gated, tokens = GatedFusion(MODALITIES, width=D), make_gappy_tokens()
    mean = make_fusion("mean")
    torch.testing.assert_close(gated.eval()(tokens), mean.eval()(tokens), rtol=0, atol=1e-6)


@torch.no_grad()
def test_late_scores_are_one_convex_combination_of_the_modalities_scores() -> None:
    fusion, tokens = make_fusion("late").eval(), make_gappy_tokens()
    assert isinstance(fusion, LateFusion)
    for out in fusion.out.outputs:
        out.mean.copy_(torch.randn(D))
    users, content = unit_rows(20), fusion(tokens)
    for item in range(1, 7):
        names = list(means_of(fusion, tokens, item))
        alone = {name: fusion({name: tokens[name]})[item] for name in names}
        exponents = [math.exp(float(fusion.out.weight[sorted(WIDTHS).index(n)])) for n in names]
        scores = sum(
            weight / sum(exponents) * (users @ alone[name])
            for name, weight in zip(names, exponents, strict=True)
        )
        scale = scores / (users @ content[item])  # the same for every user
        torch.testing.assert_close(scale, scale[:1].expand(20), rtol=1e-3, atol=0)
        assert 0 < scale[0] <= 1 + 1e-5
    torch.testing.assert_close(content[0], F.normalize(fusion.out.null, dim=0))


def test_late_output_centres_a_modality_on_the_items_that_have_it() -> None:
    torch.manual_seed(0)
    out = LateOutput(2, D)
    pooled, present = torch.randn(9, 2, D), torch.ones(9, 2, dtype=torch.bool)
    present[3:, 1] = False
    out.train()(pooled, present)
    for k, rows in enumerate((9, 3)):
        own = out.outputs[k]
        torch.testing.assert_close(own.mean, 0.1 * own.projection(pooled[:rows, k]).mean(0))
    before = out.outputs[1].mean
    out(pooled, present & torch.tensor([True, False]))
    assert torch.equal(out.outputs[1].mean, before)  # nobody has it: nothing to follow


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_start_spread(kind: str) -> None:
    fusion = make_fusion(kind).eval()
    random = torch.Generator().manual_seed(0)
    tokens = {
        name: Tokens(
            # one value for all items and little beside it: contents of a fresh fusion are alike
            3 * torch.randn(TOKENS[name], width, generator=random)
            + 0.3 * torch.randn(200, TOKENS[name], width, generator=random),
            torch.rand(200, TOKENS[name], generator=random) < 0.9,
        )
        for name, width in WIDTHS.items()
    }
    pairs = torch.ones(200, 200).triu(1).bool()

    def mean_cosine() -> Tensor:
        content = fusion(tokens)
        return (content @ content.T)[pairs].mean()

    before = mean_cosine()
    hidden: list[tuple[Tensor, ...]] = []
    hook = fusion.out.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs))
    fusion(tokens)
    hook.remove()
    fusion.out.spread(*hidden[0])
    assert before > 0.3 and mean_cosine().abs() < 0.1


def test_latents_start_faint_beside_the_mean_of_means() -> None:
    fusion, tokens = make_fusion("latents").eval(), make_tokens()
    fusion.norm.weight.detach().zero_()
    wanted = []
    for item in range(7):
        means = []
        for name in sorted(WIDTHS):
            projected = fusion.projections[name.replace(".", "_")](tokens[name])[item]
            means.append(projected[tokens[name].mask[item]].mean(0))
        wanted.append(fusion.out.projection(torch.stack(means).mean(0)))
    torch.testing.assert_close(fusion(tokens), F.normalize(torch.stack(wanted), dim=-1))


def test_feature_dropout_silences_a_channel_in_all_tokens_of_an_item() -> None:
    projection = TokenProjection(Modality(6, 5), width=6, feature_dropout=0.5)
    nn.init.eye_(projection.projection.weight)
    for silent in (projection.projection.bias, projection.modality, projection.position):
        nn.init.zeros_(silent)
    tokens = make_tokens()["text"]
    heard = projection(tokens) != 0
    spoken = projection.norm(tokens.values) != 0
    share = heard[tokens.mask].float().mean()
    assert 0.2 < share < 0.8
    for item in range(7):
        rows = heard[item][tokens.mask[item]]
        assert (rows == rows[0]).all() and rows.shape[1] == 6  # one draw an item and channel
    assert (projection.eval()(tokens) != 0).equal(spoken)


def fitted(k: int, *, scale: float = 1.0) -> tuple[TokenProjection, Tokens]:
    """A projection of k components, and 60 items' tokens that differ in three directions most."""
    random = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(10, 10, generator=random)).Q
    spread = torch.tensor([4.0, 3.0, 2.0] + [0.05] * 7)
    values = torch.randn(60, 1, 10, generator=random) * spread @ directions.T
    values = values + 0.01 * torch.randn(60, 4, 10, generator=random)
    tokens = masked(values, torch.rand(60, 4, generator=random) < 0.7)
    torch.manual_seed(0)
    projection = TokenProjection(
        Modality(10, 4, components=k, scale=scale), width=D, feature_dropout=0.0
    )
    projection.fit(projection.pooled(tokens))
    return projection, tokens


def test_components_are_those_of_principal_component_analysis() -> None:
    projection, tokens = fitted(3)
    pooled = torch.stack(
        [
            F.layer_norm(values[mask], (10,)).mean(0)
            for values, mask in zip(tokens.values, tokens.mask, strict=True)
            if mask.any()
        ]
    )
    assert 40 < pooled.shape[0] < 60  # items without a token teach nothing
    reference = PCA(3).fit(pooled.double().numpy())
    found = (pooled - projection.centre) @ projection.basis
    wanted = torch.from_numpy(reference.transform(pooled.double().numpy())).float()
    ratio = found / wanted
    torch.testing.assert_close(ratio.abs(), torch.full_like(ratio, float(ratio[0, 0].abs())))
    assert (ratio.std(0) < 1e-3).all()  # up to one sign a direction, and one scale for all
    torch.testing.assert_close(found.square().mean(), torch.tensor(1.0))


def test_components_take_no_part_in_training_and_travel_with_the_weights() -> None:
    projection, tokens = fitted(3)
    names = {name for name, _ in projection.named_parameters()}
    assert names == {"projection.weight", "projection.bias", "modality", "position"}
    torch.manual_seed(1)
    other = TokenProjection(Modality(10, 4, components=3), width=D, feature_dropout=0.0)
    assert not torch.equal(other(tokens), projection(tokens))
    other.load_state_dict(projection.state_dict())
    assert torch.equal(other(tokens), projection(tokens))


def test_all_components_say_what_the_channels_say() -> None:
    projection, tokens = fitted(99)
    assert projection.num_components == 10  # no more than there are channels
    channels = F.layer_norm(tokens.values, (10,))
    # nine directions: a layer norm leaves the mean channel nothing
    rebuilt = (channels - projection.centre) @ projection.basis
    back, *_ = torch.linalg.lstsq(rebuilt.flatten(0, 1), channels.flatten(0, 1))
    torch.testing.assert_close((rebuilt @ back).var(0), channels.var(0), rtol=0.05, atol=1e-3)


def test_scale_weighs_a_modality_among_the_others() -> None:
    (plain, tokens), (faint, _) = fitted(3), fitted(3, scale=0.25)
    torch.testing.assert_close(faint(tokens), 0.25 * plain(tokens))
    loud, faintly = make_fusion("mean"), make_fusion("mean")
    faintly.projections["image"].scale = 1e-6
    given = make_tokens()
    without = {
        **given,
        "image": Tokens(torch.zeros_like(given["image"].values), given["image"].mask),
    }
    loud.eval(), faintly.eval()
    assert not torch.allclose(loud(given), loud(without), atol=1e-3)
    torch.testing.assert_close(faintly(given), faintly(without), atol=1e-5, rtol=0)


def test_output_follows_the_mean_and_never_uses_its_neighbours() -> None:
    torch.manual_seed(0)
    out = Output(5, D)
    out.mean.copy_(torch.randn(D))
    hidden, before = torch.randn(9, 5), out.mean.clone()
    wanted = F.normalize(out.projection(hidden) - before, dim=-1)
    torch.testing.assert_close(out.eval()(hidden), wanted)
    assert torch.equal(out.mean, before)  # in use it stays
    torch.testing.assert_close(out.train()(hidden), wanted)  # training changes gradients alone
    moved = 0.9 * before + 0.1 * out.projection(hidden).mean(0)
    torch.testing.assert_close(out.mean, moved)
    shared = torch.zeros(5, requires_grad=True)
    loss = (out(hidden + shared) * torch.randn(9, D)).sum()
    (gradient,) = torch.autograd.grad(loss, shared)
    assert gradient.abs().max() < 1e-5  # what all items share gets no gradient


def test_spread_contents_point_everywhere() -> None:
    torch.manual_seed(0)
    out = Output(32, D).eval()
    hidden = 5.0 + torch.randn(400, 32) * torch.linspace(0.1, 1, 32)
    pairs = torch.ones(400, 400).triu(1).bool()

    def cosines() -> Tensor:
        content: Tensor = out(hidden)
        return (content @ content.T)[pairs]

    assert cosines().mean() > 0.8
    out.spread(hidden)
    assert cosines().mean().abs() < 0.01 and cosines().abs().mean() < 0.3


XOR_WIDTHS, XOR_TOKENS = {"text": 6, "image": 10}, {"text": 3, "image": 2}


def make_xor(seed: int, num_items: int = 192) -> tuple[dict[str, Tokens], Tensor]:
    """Items whose label is the exclusive or of a sign in the text and a sign in the image.

    The sign stands in a random token of its modality, the other tokens are noise.
    """
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (num_items, 2), generator=random)
    made = {}
    for column, name in enumerate(XOR_WIDTHS):
        shape = num_items, XOR_TOKENS[name], XOR_WIDTHS[name]
        values = 0.1 * torch.randn(shape, generator=random)
        place = torch.randint(XOR_TOKENS[name], (num_items,), generator=random)
        values[torch.arange(num_items), place, 0] = 4.0 * signs[:, column].float() - 2.0
        made[name] = Tokens(values, torch.ones(shape[:2], dtype=torch.bool))
    return made, (signs[:, 0] != signs[:, 1]).float()


def xor_accuracy(modalities: Sequence[str]) -> float:
    """Share of labels of new items that a head on the content gets right after a short training."""
    torch.manual_seed(0)
    fusion = LatentFusion(
        {name: Modality(XOR_WIDTHS[name], XOR_TOKENS[name]) for name in modalities},
        width=D,
        num_latents=4,
        num_layers=1,
        num_heads=HEADS,
        dropout=0.0,
    )
    head = nn.Linear(D, 1)

    def logits(tokens: Mapping[str, Tokens]) -> Tensor:
        content = fusion({name: tokens[name] for name in modalities})
        logit: Tensor = 5 * head(content)[:, 0]  # contents are of length 1
        return logit

    optimiser = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=0.01)
    for step in range(150):
        tokens, label = make_xor(seed=100 + step)
        loss = F.binary_cross_entropy_with_logits(logits(tokens), label)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    tokens, label = make_xor(seed=8, num_items=512)
    with torch.no_grad():
        return float(((logits(tokens) > 0) == (label > 0.5)).float().mean())


def make_marked(seed: int, num_items: int = 192) -> tuple[dict[str, Tokens], Tensor]:
    """Items whose label is a sign in the modality that bears a mark; the other has a sign too."""
    random = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (num_items, 2), generator=random)
    marked = torch.randint(2, (num_items,), generator=random)
    made = {}
    for column, name in enumerate(XOR_WIDTHS):
        values = 0.1 * torch.randn(num_items, 1, XOR_WIDTHS[name], generator=random)
        values[:, 0, 0] = 2.0 * signs[:, column].float() - 1.0
        values[:, 0, 1] = 2.0 * (marked == column).float() - 1.0
        made[name] = Tokens(values, torch.ones(num_items, 1, dtype=torch.bool))
    return made, signs[torch.arange(num_items), marked].float()


def marked_accuracy(kind: str) -> float:
    """Share of labels of new marked items that are right after a short training."""
    torch.manual_seed(0)
    modalities = {name: Modality(XOR_WIDTHS[name], XOR_TOKENS[name]) for name in XOR_WIDTHS}
    fusion, head = OF_MEANS[kind](modalities, width=D), nn.Linear(D, 1)
    optimiser = torch.optim.Adam([*fusion.parameters(), *head.parameters()], lr=0.02)
    for step in range(150):
        tokens, label = make_marked(seed=100 + step)
        loss = F.binary_cross_entropy_with_logits(5 * head(fusion(tokens))[:, 0], label)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    tokens, label = make_marked(seed=8, num_items=512)
    with torch.no_grad():
        return float(((head(fusion.eval()(tokens))[:, 0] > 0) == (label > 0.5)).float().mean())


def test_gates_learn_which_modality_counts_for_an_item() -> None:
    assert marked_accuracy("gated") > 0.95
    assert marked_accuracy("mean") < 0.85


def test_latents_learn_what_no_modality_shows_alone() -> None:
    assert xor_accuracy(["text", "image"]) > 0.95
    assert xor_accuracy(["text"]) == pytest.approx(0.5, abs=0.1)
    assert xor_accuracy(["image"]) == pytest.approx(0.5, abs=0.1)
