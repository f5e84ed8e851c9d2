"""The chunked softmax against torch's cross-entropy, a slow double loop and a closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec.training.losses import ExcludedPairs, catalogue_softmax, met_before

P, N, D = 150, 37, 8
CHUNKS = pytest.mark.parametrize("chunk_elements", [1, 130 * N, 10**6], ids=["64", "128", "all"])
SMOOTHING = pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])


def make_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users, items, bias (all with gradient) and targets."""
    random = torch.Generator().manual_seed(0)
    users = torch.randn(P, D, generator=random, dtype=dtype).requires_grad_()
    items = torch.randn(N, D, generator=random, dtype=dtype).requires_grad_()
    bias = torch.randn(N, generator=random, dtype=dtype).requires_grad_()
    return users, items, bias, torch.randint(N, (P,), generator=random)


def make_excluded() -> ExcludedPairs:
    """About a tenth of all pairs, positions ascending; some of them are targets, some twice."""
    drawn = torch.rand(P, N, generator=torch.Generator().manual_seed(1)) < 0.1
    rows, items = drawn.nonzero(as_tuple=True)
    return ExcludedPairs(rows.repeat_interleave(2), items.repeat_interleave(2), num_rows=P)


def slow_loss(
    users: Tensor,
    items: Tensor,
    bias: Tensor,
    targets: Tensor,
    excluded: ExcludedPairs,
    smoothing: float,
) -> Tensor:
    """The formula of the docstring, one position and one item at a time."""
    out = set(zip(excluded.rows.tolist(), excluded.items.tolist(), strict=True))
    total = users.new_zeros(())
    for p, target in enumerate(targets.tolist()):
        kept = [n for n in range(N) if n == target or (p, n) not in out]
        logits = torch.stack([users[p] @ items[n] + bias[n] for n in kept])
        positive = logits[kept.index(target)]
        total = total + torch.logsumexp(logits, 0)
        total = total - (1 - smoothing) * positive - smoothing * logits.mean()
    return total / P


def gradients(loss: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss * 3.0, inputs)  # a factor from above must pass through


@CHUNKS
@SMOOTHING
def test_equals_torchs_cross_entropy(smoothing: float, chunk_elements: int) -> None:
    users, items, bias, targets = make_inputs()
    ours = catalogue_softmax(
        users, items, bias, targets, label_smoothing=smoothing, chunk_elements=chunk_elements
    )
    plain = F.cross_entropy(users @ items.T + bias, targets, label_smoothing=smoothing)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    inputs = (users, items, bias)
    for mine, theirs in zip(gradients(ours, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@CHUNKS
@SMOOTHING
def test_excluded_pairs_equal_a_slow_loop(smoothing: float, chunk_elements: int) -> None:
    users, items, bias, targets = make_inputs()
    excluded = make_excluded()
    ours = catalogue_softmax(
        users,
        items,
        bias,
        targets,
        excluded=excluded,
        label_smoothing=smoothing,
        chunk_elements=chunk_elements,
    )
    slow = slow_loss(users, items, bias, targets, excluded, smoothing)
    torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-5)
    inputs = (users, items, bias)
    for mine, theirs in zip(gradients(ours, inputs), gradients(slow, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_closed_form() -> None:
    # all logits equal: the loss is the log of the number of candidates left
    users, items = torch.zeros(2, D), torch.zeros(5, D)
    excluded = ExcludedPairs(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 4]), num_rows=2)
    loss = catalogue_softmax(users, items, torch.zeros(5), torch.tensor([0, 0]), excluded=excluded)
    assert loss.item() == pytest.approx((math.log(3) + math.log(4)) / 2)


def test_target_stays_a_candidate() -> None:
    users, items, bias, targets = make_inputs()
    everything = ExcludedPairs(
        torch.arange(P).repeat_interleave(N), torch.arange(N).repeat(P), num_rows=P
    )
    loss = catalogue_softmax(users, items, bias, targets, excluded=everything)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)  # nothing is left but the target
    assert all(gradient.abs().max() < 1e-6 for gradient in gradients(loss, (users, items, bias)))


@SMOOTHING
def test_gradcheck(smoothing: float) -> None:
    users, items, bias, targets = (each[:5].detach() for each in make_inputs(torch.float64))
    excluded = ExcludedPairs(torch.tensor([0, 3, 3]), torch.tensor([1, 0, 2]), num_rows=5)

    def loss(users: Tensor, items: Tensor, bias: Tensor) -> Tensor:
        return catalogue_softmax(
            users, items, bias, targets % 5, excluded=excluded, label_smoothing=smoothing
        )

    assert torch.autograd.gradcheck(
        loss, tuple(each.clone().requires_grad_() for each in (users, items, bias))
    )


def test_bf16_autocast_is_near_fp32() -> None:
    users, items, bias, targets = make_inputs()
    inputs = (users, items, bias)
    exact = catalogue_softmax(*inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = catalogue_softmax(*inputs, targets)
    assert rounded.dtype == torch.float32
    assert rounded.item() != exact.item()  # the products did run in bf16
    assert rounded.item() == pytest.approx(exact.item(), rel=0.01)
    for low, high in zip(gradients(rounded, inputs), gradients(exact, inputs), strict=True):
        assert low.dtype == torch.float32
        assert (low - high).norm() < 0.02 * high.norm()


def test_no_position_gives_zero() -> None:
    users, items = torch.zeros(0, D, requires_grad=True), torch.zeros(3, D, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    excluded = ExcludedPairs(nothing, nothing, num_rows=0)
    loss = catalogue_softmax(users, items, torch.zeros(3), nothing, excluded=excluded)
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert items.grad is not None and not items.grad.any()


@pytest.mark.parametrize("everything", [False, True], ids=["before", "everything"])
@pytest.mark.parametrize("some", [False, True], ids=["all counted", "some counted"])
def test_met_before_equals_a_slow_loop(everything: bool, some: bool) -> None:
    random = torch.Generator().manual_seed(2)
    items = torch.randint(9, (14,), generator=random)
    offsets = torch.tensor([0, 5, 6, 6, 14])
    counted = torch.rand(14, generator=random) < 0.6 if some else torch.ones(14, dtype=torch.bool)
    wanted, row = [], 0
    for start, stop in pairwise(offsets.tolist()):
        for p in range(start, stop):
            if counted[p]:
                seen = items[start : stop if everything else p + 1]
                wanted += [(row, item) for item in seen.tolist()]
                row += 1
    pairs = met_before(items, offsets, everything=everything, counted=counted if some else None)
    assert list(zip(pairs.rows.tolist(), pairs.items.tolist(), strict=True)) == wanted
    assert pairs.starts.shape == (row + 1,)
    assert not pairs.rows.diff().lt(0).any()


def test_pairs_of_a_chunk() -> None:
    pairs = ExcludedPairs(torch.tensor([0, 2, 2, 3]), torch.tensor([1, 0, 4, 2]), num_rows=5)
    assert pairs.within(2, 4, 5).tolist() == [0, 4, 7]
    assert pairs.within(4, 5, 5).tolist() == []
