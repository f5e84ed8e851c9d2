"""The order of several catalogues' batches: each sample once an epoch, whoever reads it."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from data_prep.shards import History
from mmrec.data.batch import Batch, BatchStream, TargetRule, batch_loader
from mmrec.data.histories import EpochPlan, IntArray
from mmrec.data.mix import MixedStream, shares_of

NUM_ITEMS = 50


@dataclass(frozen=True)
class Made:
    """Histories in memory; a user's items say who he is."""

    lengths: IntArray
    shard_of: np.ndarray

    def read(self, i: int) -> History:
        items = (np.arange(self.lengths[i]) + i) % NUM_ITEMS
        return History(i, items, None, None, None, None)


def stream_of(
    num_users: int, *, batch_size: int = 4, shards: int = 3, rank: int = 0, world: int = 1
) -> BatchStream:
    lengths = 3 + np.arange(num_users) % 7
    shard_of = (np.arange(num_users) * shards // num_users).astype(np.int32)
    plan = EpochPlan(
        lengths,
        shard_of,
        batch_size=batch_size,
        max_length=20,
        shuffle_window=2,
        bucket_batches=2,
        seed=5,
    )
    return BatchStream(
        plan,
        Made(lengths, shard_of),
        row_of=np.arange(NUM_ITEMS),
        item_index_of=np.arange(NUM_ITEMS),
        items=None,
        fresh_items=None,
        targets=TargetRule(),
        seed=5,
        rank=rank,
        world=world,
    )


def mix(
    *, music: float = 1.0, shop: float = 1.0, seed: int = 0, rank: int = 0, world: int = 1
) -> MixedStream:
    streams = {
        "music": stream_of(41, rank=rank, world=world),
        "shop": stream_of(14, shards=1, rank=rank, world=world),
    }
    return MixedStream(streams, {"music": music, "shop": shop}, seed=seed)


def read(stream: MixedStream, epoch: int, *, first: int = 0, workers: int = 0) -> list[Batch]:
    return list(batch_loader(stream, epoch=epoch, first_batch=first, num_workers=workers))


def samples_of(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    """Histories of a batch, by their catalogue and items; a stand-in counts nothing."""
    bounds = batch.offsets.tolist()
    return [
        (str(batch.catalogue), (*batch.inputs[a:b].tolist(), int(batch.targets[b - 1])))
        for a, b in zip(bounds, bounds[1:], strict=False)
        if bool(batch.counted[a:b].any())
    ]


def expected(times: int = 1) -> Counter[tuple[str, tuple[int, ...]]]:
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, num_users in (("music", 41), ("shop", 14)):
        for user in range(num_users):
            items = tuple(((np.arange(3 + user % 7) + user) % NUM_ITEMS).tolist())
            found[(name, items)] += times
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_sample_comes_once_an_epoch(world: int, workers: int) -> None:
    """One shard of one catalogue, fewer than workers and ranks."""
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    orders = []
    for rank in range(world):
        batches = read(mix(rank=rank, world=world), 1, workers=workers)
        orders.append([(each.index, each.catalogue, each.num_counted) for each in batches])
        for batch in batches:
            found.update(samples_of(batch))
    assert found == expected()
    assert all(order == orders[0] for order in orders)
    assert [index for index, _, _ in orders[0]] == list(range(len(orders[0])))


def test_a_position_is_where_any_number_of_workers_goes_on() -> None:
    whole = read(mix(), 2)
    for workers in (0, 2):
        rest = read(mix(), 2, first=5, workers=workers)
        assert [each.index for each in rest] == [each.index for each in whole[5:]]
        for one, other in zip(rest, whole[5:], strict=True):
            assert one.catalogue == other.catalogue and torch.equal(one.inputs, other.inputs)


def test_catalogues_alternate_in_proportion() -> None:
    stream = mix()
    order = stream.order(0)
    assert Counter(order) == {"music": 11, "shop": 4}
    for stop in range(1, len(order)):
        share = order[:stop].count("shop") / 4
        assert abs(share - stop / len(order)) <= 0.3
    assert stream.order(0) == order
    assert any(stream.order(epoch) != order for epoch in range(1, 5))
    assert any(mix(seed=seed).order(0) != order for seed in range(1, 5))


def test_a_weight_is_passes_an_epoch() -> None:
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    per_epoch = []
    for epoch in (0, 1):
        batches = read(mix(music=0.5, shop=2.0), epoch)
        per_epoch.append(Counter(str(each.catalogue) for each in batches))
        for batch in batches:
            found.update(samples_of(batch))
    once, often = expected(), expected(4)
    assert found == Counter(
        {key: (once if key[0] == "music" else often)[key] for key in once}
    )  # one pass over music in two epochs, four over the shop
    assert abs(per_epoch[0]["music"] - per_epoch[1]["music"]) <= 1
    assert per_epoch[0]["shop"] == per_epoch[1]["shop"] == 8


@pytest.mark.parametrize("weight", [0.3, 0.7, 1.0, 1.9])
def test_shares_of_epochs_join(weight: float) -> None:
    stream = stream_of(41)
    parts = [share for epoch in range(10) for share in shares_of(epoch, weight, stream)]
    place = 0
    for share in parts:
        assert share.start in (0, place)
        place = share.stop if share.stop < stream.num_batches(share.number) else 0
    whole = Counter(share.number for share in parts for _ in range(share.start, share.stop))
    finished = range(int(10 * weight))
    assert all(whole[number] == stream.num_batches(number) for number in finished)
