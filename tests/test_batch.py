"""Batches: the same for any number of workers, from any place; fresh items with known chances."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_prep.shards import History
from encoders.tokens import Tokens
from mmrec.data.batch import (
    Batch,
    BatchStream,
    ModalityInput,
    TargetRule,
    batch_loader,
    draw_candidates,
    draw_fresh,
)
from mmrec.data.histories import EpochPlan, IntArray
from mmrec.training.gradient import scale_gradient

NUM_ITEMS, NUM_TRAINED = 40, 30


class InMemoryHistories:
    """Histories as a split's training index gives them."""

    def __init__(self, num_histories: int = 60) -> None:
        random = np.random.default_rng(0)
        self.lengths = random.integers(2, 15, num_histories)
        self.shard_of = (np.arange(num_histories) // 10).astype(np.int32)
        self.trained = np.arange(NUM_ITEMS)[::-1][:NUM_TRAINED].copy()

    def read(self, i: int) -> History:
        random = np.random.default_rng((1, i))
        length = int(self.lengths[i])
        return History(
            user_index=i,
            item_index=random.choice(self.trained, length),
            time=None,
            event=random.integers(0, 3, length).astype(np.int16),
            value=None,
            context={},
        )


class InMemoryItems:
    """Media of items: a cached modality and a raw one, both made of the item's number."""

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        number = torch.from_numpy(item_index).float()
        mask = torch.ones(number.shape[0], 1, dtype=torch.bool)
        return {
            "text": Tokens(number[:, None, None], mask),
            "image": {"images": number[:, None], "present": mask[:, 0]},
        }


def make_stream(**changes: Any) -> BatchStream:
    histories = InMemoryHistories()
    plan = EpochPlan(
        histories.lengths,
        histories.shard_of,
        batch_size=4,
        max_length=6,
        shuffle_window=2,
        bucket_batches=2,
        seed=3,
    )
    row_of = np.full(NUM_ITEMS, -1, np.int64)
    row_of[histories.trained] = np.arange(NUM_TRAINED)
    settings = {
        "row_of": row_of,
        "item_index_of": histories.trained,
        "items": InMemoryItems(),
        "fresh_items": 9,
        "targets": TargetRule(frozenset({0, 2})),
        "seed": 3,
    }
    return BatchStream(plan, histories, **{**settings, **changes})


def flatten(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    parts = [torch.tensor([batch.epoch, batch.index])]
    for field in fields(Batch):
        value = getattr(batch, field.name)
        parts += [value] if isinstance(value, Tensor) else []
    text, image = batch.media["text"], batch.media["image"]
    assert isinstance(text, Tokens) and isinstance(image, dict)
    return [*parts, text.values, text.mask, image["images"], image["present"]]


def load(*, epoch: int = 1, first_batch: int = 0, num_workers: int = 0) -> list[list[Tensor]]:
    loader = batch_loader(
        make_stream(), epoch=epoch, first_batch=first_batch, num_workers=num_workers
    )
    return [flatten(batch) for batch in loader]


def assert_same(one: list[list[Tensor]], other: list[list[Tensor]]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.fixture(scope="module")
def unbroken() -> list[list[Tensor]]:
    """All batches of epoch 1, read without workers from the first on."""
    return load()


# torch warns of more workers than cores, on a machine that has few
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches(
    unbroken: list[list[Tensor]], num_workers: int
) -> None:
    assert_same(load(num_workers=num_workers), unbroken)


def test_resumes_from_any_batch(unbroken: list[list[Tensor]]) -> None:
    for first in range(len(unbroken) + 1):
        assert_same(load(first_batch=first), unbroken[first:])


def test_resumes_from_the_middle_with_workers(unbroken: list[list[Tensor]]) -> None:
    assert_same(load(first_batch=5, num_workers=2), unbroken[5:])


def test_epochs_differ(unbroken: list[list[Tensor]]) -> None:
    other = load(epoch=2)
    assert [int(each[0][1]) for each in other] == list(range(len(other)))
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(unbroken, other, strict=False))


def test_batch_holds_what_the_histories_say() -> None:
    stream = make_stream()
    stream.epoch = 1
    for samples, batch in zip(stream.plan.batches(1), stream, strict=True):
        inputs, targets, counted = [], [], []
        for i, start, stop in zip(samples.history, samples.start, samples.stop, strict=True):
            record = stream.histories.read(int(i))
            rows = stream.row_of[record.item_index].tolist()
            inputs += rows[start : stop - 1]
            targets += rows[start + 1 : stop]
            assert record.event is not None
            counted += [int(event) in (0, 2) for event in record.event[start + 1 : stop]]
        assert batch.inputs.tolist() == inputs
        assert batch.targets.tolist() == targets
        assert batch.counted.tolist() == counted
        lengths = (samples.stop - samples.start - 1).tolist()
        assert batch.offsets.diff().tolist() == lengths
        assert not all(counted) or len(counted) < 6


def test_media_are_those_of_the_fresh_items() -> None:
    stream = make_stream()
    batch = next(iter(stream))
    text = batch.media["text"]
    assert isinstance(text, Tokens)
    wanted = torch.from_numpy(stream.item_index_of)[batch.fresh]
    assert text.values[:, 0, 0].tolist() == wanted.tolist()
    assert batch.fresh.shape == batch.inverse_probability.shape == (9,)


def test_model_of_ids_reads_no_media() -> None:
    batch = next(iter(make_stream(items=None)))
    assert batch.media == {} and batch.fresh.shape == batch.inverse_probability.shape == (0,)


def test_item_out_of_training_in_a_history_is_a_defect() -> None:
    with pytest.raises(AssertionError, match="not in training"):
        next(iter(make_stream(row_of=np.full(NUM_ITEMS, -1, np.int64))))


# fresh items


TARGETS = np.array([3, 3, 3, 7, 11, 12, 12, 18, 19, 3])


def test_all_items_where_they_fit() -> None:
    random = np.random.default_rng(0)
    for size in (None, 20, 50):
        fresh, weight = draw_fresh(TARGETS, num_items=20, size=size, random=random)
        assert fresh.tolist() == list(range(20)) and (weight == 1).all()


@pytest.mark.parametrize("size", [1, 2, 6, 13, 19])
def test_chance_of_an_item_equals_the_formula(size: int) -> None:
    random = np.random.default_rng(size)
    draws = 3000
    count, stated = np.zeros(20), np.full(20, np.nan)
    for _ in range(draws):
        fresh, weight = draw_fresh(TARGETS, num_items=20, size=size, random=random)
        assert fresh.shape == (size,) and (np.diff(fresh) > 0).all()
        count[fresh] += 1
        stated[fresh] = 1 / weight
    distinct = np.unique(TARGETS)
    drawn = min(size - size // 2, distinct.shape[0])
    share = np.where(np.isin(np.arange(20), distinct), drawn / distinct.shape[0], 0.0)
    wanted = share + (1 - share) * (size - drawn) / (20 - drawn)
    met = ~np.isnan(stated)
    np.testing.assert_allclose(stated[met], wanted[met], rtol=1e-6)
    np.testing.assert_array_equal(met, wanted > 0)
    np.testing.assert_allclose(count / draws, wanted, atol=4 * 0.5 / np.sqrt(draws))


def test_weighted_gradient_is_unbiased() -> None:
    random = np.random.default_rng(1)
    content = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    slope = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    total = torch.zeros(20, 3)
    draws = 3000
    for _ in range(draws):
        rows, weight = draw_fresh(TARGETS, num_items=20, size=6, random=random)
        fresh = content[rows].requires_grad_()
        scaled = scale_gradient(fresh, torch.from_numpy(weight))
        assert torch.equal(scaled, fresh)  # the value itself is not weighted
        loss = (scaled * slope[rows]).sum()
        total[rows] += torch.autograd.grad(loss, fresh)[0]
    # of all items, the whole gradient; the least likely item has pi = 3 / 17
    error = (total / draws - slope).abs() / slope.abs()
    assert float(error.max()) < 5 * np.sqrt((17 / 3 - 1) / draws)


# which events may be targets


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (TargetRule(), [True, True, True, True]),
        (TargetRule(frozenset({1})), [False, True, True, False]),
        (TargetRule(frozenset()), [False, False, False, False]),
        (TargetRule(None, 3.0), [True, False, False, True]),
        (TargetRule(frozenset({0}), 4.0), [False, False, False, True]),
    ],
    ids=["all", "events", "none", "values", "both"],
)
def test_target_rule(rule: TargetRule, wanted: list[bool]) -> None:
    event = np.array([9, 0, 1, 1, 0], np.int16)
    value = np.array([9, 3, np.nan, 2.5, 4], np.float32)
    assert rule.allowed(event, value, 1, 5).tolist() == wanted


def test_target_rule_without_columns() -> None:
    assert TargetRule(frozenset({1}), 3.0).allowed(None, None, 2, 5).tolist() == [True] * 3


def test_candidates_are_drawn_as_often_as_is_said() -> None:
    random = np.random.default_rng(0)
    counts = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512] * 4)
    shares = counts / counts.sum()
    fresh_size, positions, draws = 5, 12, 4000
    seen, said = np.zeros(len(counts)), np.zeros(len(counts))
    for _ in range(draws):
        targets = random.choice(len(counts), positions, p=shares)
        fresh = np.sort(random.choice(len(counts), fresh_size, replace=False))
        rows, log_inclusion = draw_candidates(targets, fresh, counts, size=6, random=random)
        assert np.array_equal(rows, np.unique(rows)) and np.isin(targets, rows).all()
        assert np.isin(fresh, rows).all()
        seen[rows] += 1 / draws
        said[rows] = np.exp(log_inclusion)
    np.testing.assert_allclose(seen, said, atol=0.03)
    rows, log_inclusion = draw_candidates(targets, fresh, counts, size=40, random=random)
    assert np.array_equal(rows, np.arange(40)) and not log_inclusion.any()
