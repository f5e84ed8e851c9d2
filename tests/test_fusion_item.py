"""Item fusion of every kind: what must not matter to the content of an item."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from fusion_inputs import KINDS, TOKENS, WIDTHS, make_fusion, make_tokens, unit_rows
from torch import Tensor

from encoders.tokens import Tokens
from fusion.item import drop_modalities


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
