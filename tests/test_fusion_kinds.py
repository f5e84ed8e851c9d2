"""What each kind of item fusion computes, against loops, and what it can learn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from fusion_inputs import (
    HEADS,
    MODALITIES,
    OF_MEANS,
    WIDTHS,
    D,
    Fusion,
    make_fusion,
    make_tokens,
    unit_rows,
)
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.item import GatedFusion, LateFusion, LatentFusion, LateOutput, Modality, drop_modalities


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
