"""The ranker as a module: what it starts from, and what a candidate's number may depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fusion.ranker import Candidates, Past, Ranker, nearness

B, C, T, L, D, FEATURES = 3, 5, 4, 6, 16, 3


@pytest.fixture
def ranker() -> Ranker:
    """One whose last layer is no longer 0."""
    torch.manual_seed(0)
    made = Ranker(
        D,
        num_tokens=T,
        num_features=FEATURES,
        max_history=L,
        num_blocks=2,
        num_heads=2,
        dropout=0.0,
        heads=["click", "stars"],
    )
    torch.nn.init.normal_(made.out.weight)
    return made.eval()


def units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def some_candidates() -> Candidates:
    mask = torch.ones(B, C, T, dtype=torch.bool)
    mask[0, 1, 2:] = False
    return Candidates(units(B, C, T, D), mask, torch.randn(B, C, FEATURES))


def some_past() -> Past:
    mask = torch.arange(L) < torch.tensor([[L], [2], [0]])  # the last user has no events
    return Past(units(B, D), units(B, L, D), units(B, L, D), mask)


def test_an_untrained_ranker_corrects_nothing() -> None:
    made = Ranker(
        D, num_tokens=T, num_features=FEATURES, max_history=L, num_blocks=1, num_heads=2,
        dropout=0.0, heads=["click"],
    )  # fmt: skip
    told = made(some_candidates(), some_past())
    assert told.shape == (B, C, 2)
    assert (told == 0).all()


def test_a_candidate_is_judged_apart_from_the_others(ranker: Ranker) -> None:
    candidates, past = some_candidates(), some_past()
    told = ranker(candidates, past)
    assert told.isfinite().all() and told.std() > 0.01
    order = torch.tensor([3, 0, 4])
    some = Candidates(*(each[:, order] for each in vars(candidates).values()))
    torch.testing.assert_close(ranker(some, past), told[:, order], atol=1e-5, rtol=1e-5)


def test_padding_and_masked_tokens_are_not_seen(ranker: Ranker) -> None:
    candidates, past = some_candidates(), some_past()
    told = ranker(candidates, past)
    filled = [torch.where(past.mask[..., None], each, 9.0) for each in (past.states, past.items)]
    hidden = torch.where(candidates.mask[..., None], candidates.tokens, 9.0)
    other = ranker(
        replace(candidates, tokens=hidden), replace(past, states=filled[0], items=filled[1])
    )
    torch.testing.assert_close(other, told)
    longer = [F.pad(each, (0, 0, 0, 3)) for each in (past.states, past.items)]
    padded = Past(past.user, longer[0], longer[1], F.pad(past.mask, (0, 3)))
    torch.testing.assert_close(ranker(candidates, padded), told, atol=1e-5, rtol=1e-5)


def test_events_count_and_so_does_their_order(ranker: Ranker) -> None:
    candidates, past = some_candidates(), some_past()
    told = ranker(candidates, past)
    swapped = past.items.clone()
    swapped[0, [0, L - 1]] = past.items[0, [L - 1, 0]]
    other = ranker(candidates, replace(past, items=swapped))
    assert (other[0] - told[0]).abs().min() > 1e-4
    torch.testing.assert_close(other[1:], told[1:])


def test_gradients_reach_every_weight(ranker: Ranker) -> None:
    ranker.train()
    ranker(some_candidates(), some_past()).square().sum().backward()
    grads = {name: each.grad for name, each in ranker.named_parameters()}
    without = [name for name, grad in grads.items() if grad is None or not grad.any()]
    assert without == []


def test_nearness_is_that_of_the_nearest_event_and_of_the_newest() -> None:
    candidates, past = some_candidates(), some_past()
    found = nearness(candidates.tokens, past)
    for user, length in enumerate(past.mask.sum(1).tolist()):
        for candidate in range(C):
            embedding = candidates.tokens[user, candidate, 0]
            near = [float(embedding @ event) for event in past.items[user, :length]]
            expected = [max(near), near[-1]] if near else [0.0, 0.0]
            torch.testing.assert_close(found[user, candidate], torch.tensor(expected))
