"""Variety as an objective: against a slow loop, in parts and ranks, and what it does to users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from several_ranks import configure
from torch import Tensor

from mmrec.build import assemble
from mmrec.data.batch import batch_loader
from mmrec.training.losses import ExcludedPairs
from mmrec.training.micro_batches import split_histories
from mmrec.training.objective import compute_losses
from mmrec.training.variety import expected_similarity, last_counted

pytest_plugins = ["tiny_run", "several_ranks"]
pytestmark = pytest.mark.usefixtures("restored_torch")

P, N, D, W = 9, 17, 6, 5


def make_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users and items of one width, biases, contents of another."""
    random = torch.Generator().manual_seed(0)
    users, items = (2 * torch.randn(n, D, generator=random).double() for n in (P, N))
    contents = F.normalize(torch.randn(N, W, generator=random).double(), dim=1)
    bias = torch.randn(N, generator=random).double()
    return users.requires_grad_(), items.requires_grad_(), bias, contents


def make_excluded() -> ExcludedPairs:
    drawn = torch.rand(P, N, generator=torch.Generator().manual_seed(1)) < 0.3
    return ExcludedPairs(*drawn.nonzero(as_tuple=True), num_rows=P)


def slow_similarity(excluded: ExcludedPairs | None) -> tuple[Tensor, Tensor]:
    """(P,), every pair of items by itself, and its users."""
    users, items, bias, contents = make_inputs()
    out = set()
    if excluded is not None:
        out = set(zip(excluded.rows.tolist(), excluded.items.tolist(), strict=True))
    found = []
    for p in range(P):
        kept = [n for n in range(N) if (p, n) not in out]
        share = torch.stack([users[p] @ items[n].detach() + bias[n] for n in kept]).softmax(0)
        found.append(
            sum(
                share[a] * share[b] * (contents[m] @ contents[n])
                for a, m in enumerate(kept)
                for b, n in enumerate(kept)
            )
        )
    return torch.stack(found), users  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk_elements", [1, 4 * N, 10**6], ids=["1", "4", "all"])
@pytest.mark.parametrize("excluded", [None, make_excluded()], ids=["all", "unmet"])
def test_it_is_the_expectation_over_all_pairs(
    excluded: ExcludedPairs | None, chunk_elements: int
) -> None:
    users, items, bias, contents = make_inputs()
    found = expected_similarity(
        users, items, bias, contents, excluded=excluded, chunk_elements=chunk_elements
    )
    wanted, slow_users = slow_similarity(excluded)
    torch.testing.assert_close(found, wanted)
    weights = torch.linspace(0.1, 1, P).double()
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(users.grad, slow_users.grad)
    assert items.grad is None  # only users learn from it


def test_one_content_for_all_is_1_and_opposite_halves_are_0() -> None:
    users, items, bias, contents = make_inputs()
    alike = expected_similarity(users, items, bias, contents[:1].expand(N, W))
    torch.testing.assert_close(alike, torch.ones(P).double())
    halves = torch.cat([contents[:1], -contents[:1]])
    even = expected_similarity(users, items[:1].expand(2, D), bias[:1].expand(2), halves)
    torch.testing.assert_close(even, torch.zeros(P).double())


def variety_of(data: Path, *, num_parts: int = 1, **changes: Any) -> Tensor:
    """The loss of the first batch of a small run, whose ranks and parts add up to the whole."""
    torch.manual_seed(0)
    # contents stand still: the mean that they are centred on moves with each pass
    settings = {"training.variety_weight": 1.0, "training.freeze_content_epochs": 1, **changes}
    assembly = assemble(configure(0, **settings), data)
    batch = next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))
    bank = torch.randn(assembly.num_rows, 16, generator=torch.Generator().manual_seed(2))
    found = []
    for part in split_histories(batch, num_parts):
        losses = compute_losses(
            assembly.model.train(),
            part,
            F.normalize(bank, dim=1),
            assembly.config.training,
            modality_dropout=0.0,
            repeats_forbidden=True,
        )
        assert losses.variety_loss is not None
        found.append(losses.variety_loss.detach())
    return torch.stack(found).sum()


def test_parts_and_a_sample_of_all_items_give_what_a_whole_step_does(tiny_data: Path) -> None:
    whole = variety_of(tiny_data)
    assert 0 < float(whole) < 1
    torch.testing.assert_close(variety_of(tiny_data, num_parts=3), whole)
    micro_batches = variety_of(tiny_data, **{"training.micro_batches": 3})
    torch.testing.assert_close(micro_batches, whole)
    sampled = variety_of(tiny_data, **{"training.candidates": 64})
    torch.testing.assert_close(sampled, whole)


def test_the_last_position_that_counts_stands_for_its_history(tiny_data: Path) -> None:
    stream = assemble(configure(0), tiny_data).stream
    batch = next(iter(batch_loader(stream, epoch=0, first_batch=0, num_workers=0)))
    batch.counted[batch.offsets[1] : batch.offsets[2]] = False  # one without any
    batch.counted[batch.offsets[3] - 1] = False  # one without its last
    places, number = last_counted(batch)
    slow = []
    for start, stop in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        counted = [place for place in range(start, stop) if batch.counted[place]]
        if counted:
            slow.append((counted[-1], len(counted)))
    assert list(zip(places.tolist(), number.tolist(), strict=True)) == slow
    assert len(slow) == len(batch.offsets) - 2


def test_encoders_and_temperature_do_not_learn_from_it(tiny_data: Path) -> None:
    config = configure(0, **{"training.variety_weight": 1.0, "model.item": "id", "encoders": {}})
    assembly = assemble(config, tiny_data)
    batch = next(iter(batch_loader(assembly.stream, epoch=0, first_batch=0, num_workers=0)))
    model = assembly.model.train()
    losses = compute_losses(
        model, batch, None, config.training, modality_dropout=0.0, repeats_forbidden=True
    )
    assert losses.variety_loss is not None  # a model of ids has its embeddings for contents
    losses.variety_loss.backward()
    assert model.log_temperature.grad is None
    assert model.popularity is not None and model.popularity.coefficients.grad is None
    assert model.history.out.weight.grad is not None
    assert float(model.history.out.weight.grad.abs().max()) > 0
