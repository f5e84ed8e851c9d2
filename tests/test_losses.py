"""The chunked softmax against torch's cross-entropy, a slow double loop and a closed form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrec.training.losses import (
    ExcludedPairs,
    alignment_loss,
    catalogue_softmax,
    met_before,
    sampled_softmax,
)

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


# a sample of the items


@SMOOTHING
def test_with_every_item_drawn_it_is_the_whole_softmax(smoothing: float) -> None:
    inputs = make_inputs()
    users, items, bias, targets = inputs
    excluded = make_excluded()
    whole = catalogue_softmax(
        users, items, bias, targets, excluded=excluded, label_smoothing=smoothing
    )
    drawn = sampled_softmax(
        users, items, bias, targets, candidates=torch.arange(N), log_inclusion=torch.zeros(N),
        excluded=excluded, label_smoothing=smoothing,
    )  # fmt: skip
    assert torch.equal(whole, drawn)
    for one, other in zip(gradients(whole, inputs[:3]), gradients(drawn, inputs[:3]), strict=True):
        torch.testing.assert_close(one, other)


def test_a_sample_equals_cross_entropy_over_it() -> None:
    users, items, bias, targets = make_inputs()
    targets = targets % 15
    candidates = torch.unique(torch.cat([targets, torch.arange(0, N, 3)]))
    assert len(candidates) < N
    log_inclusion = torch.linspace(-3, 0, len(candidates))
    excluded = make_excluded()
    logits = users @ items[candidates].T + bias[candidates] - log_inclusion
    places = {int(row): place for place, row in enumerate(candidates)}
    wanted = torch.tensor([places[int(target)] for target in targets])
    for row, item in zip(excluded.rows.tolist(), excluded.items.tolist(), strict=True):
        if item in places and item != int(targets[row]):
            logits[row, places[item]] = -math.inf
    loss = sampled_softmax(
        users, items, bias, targets,
        candidates=candidates, log_inclusion=log_inclusion, excluded=excluded,
    )  # fmt: skip
    torch.testing.assert_close(loss, F.cross_entropy(logits, wanted), atol=1e-5, rtol=1e-5)


def learnt_scores(*, corrected: bool, steps: int = 3000) -> tuple[Tensor, Tensor]:
    """What a bias learns of items that are liked alike and drawn unlike; and how often each is.

    Every position's target is drawn uniformly; as a candidate an item is drawn with a chance of its
    own, beside the targets of the step.
    """
    random = torch.Generator().manual_seed(0)
    num_items, positions = 24, 8
    exposure = torch.linspace(0.02, 0.9, num_items)
    chance_as_target = 1 - (1 - 1 / num_items) ** positions
    inclusion = 1 - (1 - exposure) * (1 - chance_as_target)
    users, items = torch.ones(positions, 1), torch.zeros(num_items, 1)
    bias = torch.zeros(num_items, requires_grad=True)
    average = torch.zeros(num_items)
    for step in range(steps):
        targets = torch.randint(num_items, (positions,), generator=random)
        drawn = torch.rand(num_items, generator=random) < exposure
        drawn[targets] = True
        rows = drawn.nonzero().squeeze(1)
        log_inclusion = inclusion[rows].log() if corrected else torch.zeros(len(rows))
        loss = sampled_softmax(
            users, items, bias, targets, candidates=rows, log_inclusion=log_inclusion
        )
        (gradient,) = torch.autograd.grad(loss, [bias])
        with torch.no_grad():
            bias -= 0.2 * gradient
        if step >= steps // 2:
            average += bias.detach() / (steps - steps // 2)
    return average - average.mean(), inclusion


def test_the_correction_removes_the_tilt_of_what_is_drawn_often() -> None:
    tilted, inclusion = learnt_scores(corrected=False)
    level, _ = learnt_scores(corrected=True)
    # without it an item that is drawn often is pushed down by the log of how often
    slope = torch.corrcoef(torch.stack([tilted, inclusion.log()]))[0, 1]
    assert float(slope) < -0.9 and float(tilted.max() - tilted.min()) > 0.7
    assert float(level.std()) < 0.25 * float(tilted.std())


# media of one item drawn together


def test_alignment_equals_a_slow_loop() -> None:
    random = torch.Generator().manual_seed(0)
    contents = {
        name: F.normalize(torch.randn(9, 5, generator=random), dim=1).mul(3).requires_grad_()
        for name in ("text", "image", "audio")
    }
    present = {
        "text": torch.tensor([1, 1, 1, 1, 1, 0, 1, 1, 1], dtype=torch.bool),
        "image": torch.tensor([1, 0, 1, 1, 1, 1, 1, 0, 1], dtype=torch.bool),
        "audio": torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=torch.bool),
    }
    total = []
    both = [i for i in range(9) if present["text"][i] and present["image"][i]]
    for one, other in (("text", "image"), ("image", "text")):
        for i in both:
            logits = torch.stack([contents[one][i] @ contents[other][j] for j in both])
            total.append(torch.logsumexp(logits, 0) - contents[one][i] @ contents[other][i])
    wanted = torch.stack(total).mean()  # sounds are too few to be compared
    found = alignment_loss(contents, present)
    torch.testing.assert_close(found, wanted)
    (gradient,) = torch.autograd.grad(found, [contents["image"]])
    assert not gradient[~present["text"]].any() and gradient[both].any()


def test_alignment_of_nothing_is_zero_with_a_gradient() -> None:
    contents = {name: torch.ones(2, 3, requires_grad=True) for name in ("text", "image")}
    nobody = {name: torch.zeros(2, dtype=torch.bool) for name in contents}
    loss = alignment_loss(contents, nobody)
    assert float(loss.detach()) == 0
    loss.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_are_those_of_a_weighted_mean(smoothing: float) -> None:
    torch.manual_seed(0)
    P, N, D = 150, 40, 8
    users, items = torch.randn(P, D, dtype=torch.float64), torch.randn(N, D, dtype=torch.float64)
    bias, weights = torch.randn(N, dtype=torch.float64), torch.rand(P, dtype=torch.float64) + 0.1
    targets = torch.randint(N, (P,))
    inputs = [each.requires_grad_() for each in (users, items, bias)]
    found = catalogue_softmax(
        *inputs, targets, weights=weights, label_smoothing=smoothing, chunk_elements=64 * N
    )
    terms = torch.nn.functional.cross_entropy(
        users @ items.T + bias, targets, label_smoothing=smoothing, reduction="none"
    )
    slow = (terms * weights).sum() / weights.sum()
    torch.testing.assert_close(found, slow)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(slow, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
