"""Histories as a stream of batches whose order is a function of (seed, epoch) alone.

    shards ─ permuted ─► windows of W shards ─ samples permuted, sorted by length in small
    groups ─► global batches ─► worker w prepares batches b = w, w + workers, …

A sample is a stretch of one user's history: its targets are its events but the first. Every
event of a history (but its first) is a target exactly once an epoch; where the stretches begin
differs from epoch to epoch. A position in the stream is (epoch, batch), so any number of workers
sees the same batches and can resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from data_prep.shards import History

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class HistorySource(Protocol):
    """Histories found by position: a split's training index, or arrays in a test."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(U,) events of each history."""
        ...

    @property
    def shard_of(self) -> npt.NDArray[np.int32]:
        """(U,) shard of each history."""
        ...

    def read(self, i: int) -> History:
        """History i."""
        ...


@dataclass(frozen=True)
class ChosenHistories:
    """Some histories of a source, as if there were no others."""

    source: HistorySource
    rows: IntArray

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(U,) events of each history."""
        return self.source.lengths[self.rows]

    @property
    def shard_of(self) -> npt.NDArray[np.int32]:
        """(U,) shard of each history."""
        return self.source.shard_of[self.rows]

    def read(self, i: int) -> History:
        """History i of the chosen ones."""
        return self.source.read(int(self.rows[i]))


@dataclass(frozen=True)
class Samples:
    """Stretches of histories: events start..stop of history i."""

    history: IntArray
    start: IntArray
    stop: IntArray

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.history.shape[0])

    def take(self, order: npt.NDArray[np.intp] | slice) -> Samples:
        """The samples of the given order."""
        return Samples(self.history[order], self.start[order], self.stop[order])


def stretches(
    lengths: IntArray, histories: IntArray, *, max_length: int, random: np.random.Generator
) -> Samples:
    """Cuts histories into stretches of at most max_length targets, each target in exactly one.

    A history of n events has n - 1 targets. Where they do not fit into one stretch, the first
    stretch gets a random number of them and the others max_length each.

    Args:
        lengths: (U,) events of each history; fewer than two give no sample.
        histories: which histories to cut.
        max_length: most targets of a stretch.
        random: draws the first stretch's size of each long history.
    """
    targets = lengths[histories] - 1
    # a draw for every history, so that one user's length never shifts another's draw
    draw: FloatArray = random.random((histories.shape[0],))
    first = np.where(
        targets > max_length, 1 + (draw * max_length).astype(np.int64), np.maximum(targets, 0)
    )
    rest = np.maximum(targets - first, 0)
    counts = np.where(targets > 0, 1 + -(-rest // max_length), 0)
    history = np.repeat(histories, counts)
    rank = np.arange(history.shape[0]) - np.repeat(np.cumsum(counts) - counts, counts)
    first, targets = np.repeat(first, counts), np.repeat(targets, counts)
    start = np.where(rank == 0, 0, first + (rank - 1) * max_length)
    stop = np.minimum(first + rank * max_length, targets) + 1
    return Samples(history, start, stop)


def last_stretches(lengths: IntArray, histories: IntArray, *, max_length: int) -> Samples:
    """The newest max_length targets of each history, one sample a history.

    Args:
        lengths: (U,) events of each history; fewer than two give no sample.
        histories: which histories to cut.
        max_length: most targets of a sample.
    """
    kept = histories[lengths[histories] > 1]
    return Samples(kept, np.maximum(lengths[kept] - 1 - max_length, 0), lengths[kept].copy())


class EpochPlan:
    """Which samples form which global batch.

    Args:
        lengths: (U,) events of each history.
        shard_of: (U,) shard of each history.
        batch_size: samples of a global batch; the last of an epoch may hold fewer.
        max_length: most targets of a sample.
        shuffle_window: shards among which samples are permuted.
        bucket_batches: batches that are sorted by length together.
        seed: of the run.
        windows: `all` cuts a long history into stretches, `last` takes its newest events.
    """

    def __init__(
        self,
        lengths: IntArray,
        shard_of: npt.NDArray[np.int32],
        *,
        batch_size: int,
        max_length: int,
        shuffle_window: int,
        bucket_batches: int,
        seed: int,
        windows: Literal["all", "last"] = "all",
    ) -> None:
        self.windows = windows
        self.lengths, self.shard_of = lengths, shard_of
        self.batch_size, self.max_length = batch_size, max_length
        self.shuffle_window, self.bucket_batches = shuffle_window, bucket_batches
        self.seed = seed

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch (it varies by a few, since stretches do)."""
        samples = sum(len(each) for each in self._windows(epoch))
        return -(-samples // self.batch_size)

    def batches(self, epoch: int) -> Iterator[Samples]:
        """The global batches of an epoch, in order."""
        left: list[Samples] = []
        group = self.batch_size * self.bucket_batches
        for number, window in enumerate(self._windows(epoch)):
            left.append(window)
            pool = _join(left)
            usable = len(pool) - len(pool) % group
            for begin in range(0, usable, group):
                part = pool.take(slice(begin, begin + group))
                yield from self._bucket(part, epoch, (number, begin))
            left = [pool.take(slice(usable, None))]
        if left and len(left[0]):
            yield from self._bucket(left[0], epoch, (2**31, 0))

    def _windows(self, epoch: int) -> Iterator[Samples]:
        random = np.random.default_rng((self.seed, epoch, 0))
        shards = random.permutation(np.unique(self.shard_of))
        order = np.argsort(self.shard_of, kind="stable")
        bounds = np.searchsorted(self.shard_of[order], np.arange(self.shard_of.max(initial=0) + 2))
        for begin in range(0, shards.shape[0], self.shuffle_window):
            chosen = np.sort(shards[begin : begin + self.shuffle_window])
            histories = np.concatenate([order[bounds[s] : bounds[s + 1]] for s in chosen])
            samples = self._cut(histories.astype(np.int64), epoch, begin)
            yield samples.take(random.permutation(len(samples)))

    def _cut(self, histories: IntArray, epoch: int, window: int) -> Samples:
        if self.windows == "last":
            return last_stretches(self.lengths, histories, max_length=self.max_length)
        return stretches(
            self.lengths,
            histories,
            max_length=self.max_length,
            random=np.random.default_rng((self.seed, epoch, 1, window)),
        )

    def _bucket(self, samples: Samples, epoch: int, place: tuple[int, int]) -> Iterator[Samples]:
        """Batches of like length, in random order; the short one stays last."""
        random = np.random.default_rng((self.seed, epoch, 2, *place))
        samples = samples.take(np.argsort(samples.stop - samples.start, kind="stable"))
        full = len(samples) // self.batch_size
        # the remainder is cut from a random place, or the longest would always fill it
        spare = len(samples) - full * self.batch_size
        cut = int(random.integers(full + 1)) * self.batch_size if spare else len(samples)
        starts = [
            i * self.batch_size + (spare if i * self.batch_size >= cut else 0) for i in range(full)
        ]
        for i in random.permutation(full):
            yield samples.take(slice(starts[i], starts[i] + self.batch_size))
        if spare:
            yield samples.take(slice(cut, cut + spare))


def _join(parts: Sequence[Samples]) -> Samples:
    return Samples(
        np.concatenate([each.history for each in parts]),
        np.concatenate([each.start for each in parts]),
        np.concatenate([each.stop for each in parts]),
    )
