import pytest
import torch
from torch import nn

from encoders.tokens import Tokens, masked, pool_tokens


def lengths_mask(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width).unsqueeze(0) < torch.tensor(lengths).unsqueeze(1)


def test_pooled_is_the_mean_of_real_tokens() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[7.0, 7.0]] * 3])
    tokens = Tokens(values, torch.tensor([[True, True, False], [False, False, False]]))
    assert tokens.pooled().tolist() == [[2.0, 3.0], [0.0, 0.0]]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 7, 11], ids=lambda n: f"length{n}")
def test_pooling_equals_adaptive_average(length: int) -> None:
    values = torch.randn(1, length, 6)
    pooled = pool_tokens(Tokens(values, torch.ones(1, length, dtype=torch.bool)), 4)
    assert pooled.values.shape == (1, 4, 6)
    if length <= 4:
        assert torch.equal(pooled.values[:, :length], values)
        assert pooled.mask.sum().item() == length
        assert not pooled.values[:, length:].any()
    else:
        expected = nn.functional.adaptive_avg_pool1d(values.transpose(1, 2), 4).transpose(1, 2)
        torch.testing.assert_close(pooled.values, expected)


def test_pooling_ignores_padding_even_nan() -> None:
    short = torch.randn(2, 9, 3)
    alone = pool_tokens(Tokens(short, lengths_mask([9, 5], 9)), 4)
    padded = torch.full((2, 20, 3), torch.nan)
    padded[:, :9] = short
    padded[1, 5:] = torch.nan
    together = pool_tokens(Tokens(padded, lengths_mask([9, 5], 20)), 4)
    torch.testing.assert_close(together.values, alone.values)
    assert torch.equal(together.mask, alone.mask)


def test_pooling_keeps_order_of_scattered_tokens() -> None:
    values = torch.arange(5.0).reshape(1, 5, 1)
    scattered = Tokens(values, torch.tensor([[False, True, False, True, True]]))
    pooled = pool_tokens(scattered, 4)
    assert pooled.values.flatten().tolist() == [1.0, 3.0, 4.0, 0.0]
    assert pooled.mask.tolist() == [[True, True, True, False]]


def test_an_item_without_tokens_stays_empty() -> None:
    empty = masked(torch.full((2, 3, 4), torch.nan), torch.zeros(2, 3, dtype=torch.bool))
    pooled = pool_tokens(empty, 2)
    assert not pooled.mask.any() and not pooled.values.any()
    assert not pooled.pooled().isnan().any()


def test_gradient_flows_through_pooling() -> None:
    values = torch.randn(1, 8, 3, requires_grad=True)
    pool_tokens(Tokens(values, torch.ones(1, 8, dtype=torch.bool)), 3).values.sum().backward()
    assert values.grad is not None and bool((values.grad > 0).all())


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask \(M, T\)"):
        Tokens(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        Tokens(torch.zeros(2, 3, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="num_tokens"):
        pool_tokens(Tokens(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)), 0)
