"""The order of an epoch: every target once, from (seed, epoch) alone, like lengths together."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mmrec.data.histories import EpochPlan, IntArray, Samples, stretches


def make_lengths(num_histories: int = 200, *, seed: int = 0) -> IntArray:
    """Mostly short, some many times longer than a stretch, some without a target."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 12, num_histories)
    lengths[random.random(num_histories) < 0.1] = 61
    return lengths


def make_plan(lengths: IntArray | None = None, **changes: Any) -> EpochPlan:
    lengths = make_lengths() if lengths is None else lengths
    shard_of = (np.arange(lengths.shape[0]) * 13 // max(lengths.shape[0], 1)).astype(np.int32)
    settings = {
        "batch_size": 8,
        "max_length": 10,
        "shuffle_window": 4,
        "bucket_batches": 3,
        "seed": 5,
    }
    return EpochPlan(lengths, shard_of, **{**settings, **changes})


def as_lists(plan: EpochPlan, epoch: int) -> list[list[tuple[int, int, int]]]:
    return [as_triples(batch) for batch in plan.batches(epoch)]


def as_triples(samples: Samples) -> list[tuple[int, int, int]]:
    columns = (samples.history.tolist(), samples.start.tolist(), samples.stop.tolist())
    return list(zip(*columns, strict=True))


def count_targets(triples: list[tuple[int, int, int]]) -> Counter[tuple[int, int]]:
    """How often each event is a target: those of a sample are its events but the first."""
    return Counter(
        (history, event) for history, start, stop in triples for event in range(start + 1, stop)
    )


@pytest.mark.parametrize("max_length", [1, 3, 10, 100])
def test_every_target_is_in_exactly_one_stretch(max_length: int) -> None:
    lengths = make_lengths()
    samples = stretches(
        lengths,
        np.arange(lengths.shape[0]),
        max_length=max_length,
        random=np.random.default_rng(1),
    )
    wanted = {(i, event) for i, n in enumerate(lengths.tolist()) for event in range(1, n)}
    assert count_targets(as_triples(samples)) == Counter(wanted)
    targets = samples.stop - samples.start - 1
    assert targets.min() >= 1 and targets.max() <= max_length


def test_short_histories_are_whole_and_long_ones_begin_anywhere() -> None:
    lengths = np.array([5, 61])
    first_targets = set()
    for seed in range(200):
        samples = stretches(
            lengths, np.array([0, 1]), max_length=10, random=np.random.default_rng(seed)
        )
        assert as_triples(samples)[0] == (0, 0, 5)
        first_targets.add(as_triples(samples)[1][2] - 1)
    assert first_targets == set(range(1, 11))  # every event meets every length of context


def test_length_of_one_user_does_not_shift_anothers_stretches() -> None:
    def of_the_last(first_length: int) -> list[tuple[int, int, int]]:
        samples = stretches(
            np.array([first_length, 61]),
            np.array([0, 1]),
            max_length=10,
            random=np.random.default_rng(0),
        )
        return [each for each in as_triples(samples) if each[0] == 1]

    assert of_the_last(2) == of_the_last(0) == of_the_last(80)


@pytest.mark.parametrize("epoch", [0, 3])
@pytest.mark.parametrize(
    "changes",
    [{}, {"shuffle_window": 1}, {"bucket_batches": 1}, {"bucket_batches": 100}, {"batch_size": 1}],
    ids=str,
)
def test_every_target_comes_once_an_epoch(epoch: int, changes: dict[str, int]) -> None:
    lengths = make_lengths()
    batches = as_lists(make_plan(lengths, **changes), epoch)
    wanted = {(i, event) for i, n in enumerate(lengths.tolist()) for event in range(1, n)}
    assert count_targets([each for batch in batches for each in batch]) == Counter(wanted)


def test_last_windows_are_the_newest_targets_of_every_history() -> None:
    lengths = make_lengths()
    plan = make_plan(lengths, windows="last")
    triples = [each for batch in as_lists(plan, 1) for each in batch]
    wanted = {
        (i, event) for i, n in enumerate(lengths.tolist()) for event in range(max(1, n - 10), n)
    }
    assert count_targets(triples) == Counter(wanted)
    histories = [history for history, _, _ in triples]
    assert sorted(histories) == np.flatnonzero(lengths > 1).tolist()
    assert as_lists(plan, 2) != as_lists(plan, 1)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    plan = make_plan()
    first = as_lists(plan, 2)
    as_lists(plan, 0)
    np.random.default_rng(0).random(100)
    assert as_lists(plan, 2) == first
    assert as_lists(make_plan(), 2) == first
    assert as_lists(plan, 3) != first
    assert as_lists(make_plan(seed=6), 2) != first
    # not the order alone: long histories are cut elsewhere
    plan = make_plan(shuffle_window=13)
    cuts = [{each for batch in as_lists(plan, epoch) for each in batch} for epoch in (2, 3)]
    assert cuts[0] != cuts[1]


@pytest.mark.parametrize("epoch", range(3))
def test_all_batches_but_the_last_are_full(epoch: int) -> None:
    plan = make_plan()
    sizes = [len(batch) for batch in as_lists(plan, epoch)]
    assert set(sizes[:-1]) == {8}
    assert 1 <= sizes[-1] <= 8
    assert len(sizes) == plan.num_batches(epoch)


def test_fewer_samples_than_a_batch() -> None:
    assert [len(batch) for batch in as_lists(make_plan(np.array([3, 2, 9])), 0)] == [3]
    assert as_lists(make_plan(np.array([1, 0])), 0) == []


def test_like_lengths_lie_together() -> None:
    def spread(**changes: int) -> float:
        plan = make_plan(make_lengths(1000), **changes)
        return float(np.mean([np.std(each.stop - each.start) for each in plan.batches(0)]))

    assert spread(bucket_batches=20, shuffle_window=13) < 0.2 * spread(bucket_batches=1)


def test_batches_are_not_ordered_by_length() -> None:
    plan = make_plan(make_lengths(1000), bucket_batches=1000, shuffle_window=13)
    means = [float(np.mean(each.stop - each.start)) for each in plan.batches(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_samples_mix_within_a_window_of_shards() -> None:
    plan = make_plan(np.full(390, 5), bucket_batches=1)  # 13 shards of 30 samples, windows of 4
    windows = []
    for epoch in (0, 1):
        seen = [
            int(shard) for batch in plan.batches(epoch) for shard in plan.shard_of[batch.history]
        ]
        for begin in range(0, 13, 4):
            # a window's samples come before any of the next one's, and are mixed among themselves
            part = seen[begin * 30 : (begin + 4) * 30]
            windows.append(set(part))
            assert len(windows[-1]) == min(4, 13 - begin)
            assert not windows[-1] & set(seen[(begin + 4) * 30 :])
            if begin < 12:
                assert sum(a != b for a, b in pairwise(part)) > 60
    # which shards form a window is drawn anew in each epoch
    assert windows[0] != {0, 1, 2, 3}
    assert windows[:4] != windows[4:]
