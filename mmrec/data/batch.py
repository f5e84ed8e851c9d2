"""A training batch: ragged histories, the items encoded in this step, and their media.

    EpochPlan ─► samples ─► read histories ─► rows of items ─┐
                             fresh items, 1 / pi ─► media ───┴─► Batch

Legend: B histories · P targets of all histories · M fresh items · N items in training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fusion.signals import Signals
from mmrec.data.draws import draw_candidates, draw_fresh, hide_some
from mmrec.data.histories import EpochPlan, HistorySource, IntArray, Samples
from mmrec.data.labels import HeadLabels, LabelSource, not_met
from mmrec.data.media import ItemSource, ModalityInput, media_to
from mmrec.data.queries import Queries, QuerySource
from mmrec.data.reorder import Reorder
from mmrec.data.targets import TargetRule
from mmrec.data.told import columns_of, join_columns, unknown_events

if TYPE_CHECKING:
    from data_prep.shards import History
    from mmrec.data.item_labels import ItemLabels
    from mmrec.data.mix import MixedStream
    from mmrec.data.signals import SignalSource
    from mmrec.data.unlabelled import Unlabelled, UnlabelledSource

__all__ = [
    "Batch",
    "BatchStream",
    "ItemSource",
    "ModalityInput",
    "TargetRule",
    "available_cores",
    "batch_loader",
    "draw_candidates",
    "draw_fresh",
    "hide_some",
    "media_to",
    "share_of",
]


@dataclass(frozen=True)
class Batch:
    """What one step needs.

    inputs: (P,) int64 rows of the items met, histories one after the other, oldest first; N, one
        past the last, for the event that stands before a user's first.
    targets: (P,) int64 row of the item met next.
    counted: (P,) bool, True where the next event is a target, which reading both ways hides.
    offsets: (B + 1,) int64 into inputs.
    fresh: (M,) int64 rows of the items encoded with gradient.
    inverse_probability: (M,) float, 1 / pi of each fresh item.
    media: modality -> states or raw inputs of this rank's fresh items.
    candidates: rows of the items that the loss compares; None: all N.
    log_inclusion: log of the probability that each is one.
    queries: drawn from texts of this rank's fresh items, then of its unlabelled ones; None where no
        loss asks for them.
    signals: what is told of the P events, the P requests behind them, and the users; None where
        the model reads none.
    heads: labels of each head at the P positions.
    shown: (2, E) int64, what users were shown between their events and did not meet: the position
        behind which, and the row of the item.
    num_shown: E of the whole batch, over all ranks.
    item_labels: (M, K) labels of the fresh items, over all ranks, of each set that is told.
    catalogue: which of several it is of; None for one alone.
    unlabelled: items without events that are encoded beside the fresh ones; None for none.
    own: range of `fresh` that this rank encodes.
    num_counted: positions that count, over all ranks.
    weights: (P,) of the positions in the loss, by the event that is their target; None: 1 each.
    total_weight: of the positions that count, over all ranks, where there are weights.
    rank: of the process it was made for.
    world: number of processes that share the global batch.
    """

    epoch: int
    index: int
    inputs: Tensor
    targets: Tensor
    counted: Tensor
    offsets: Tensor
    fresh: Tensor
    inverse_probability: Tensor
    media: dict[str, ModalityInput]
    own: tuple[int, int]
    num_counted: int
    weights: Tensor | None = None
    total_weight: float = 0.0
    rank: int = 0
    world: int = 1
    candidates: Tensor | None = None
    log_inclusion: Tensor | None = None
    queries: Queries | None = None
    unlabelled: Unlabelled | None = None
    signals: Signals | None = None
    heads: dict[str, HeadLabels] = field(default_factory=dict)
    shown: Tensor = field(default_factory=lambda: torch.zeros(2, 0, dtype=torch.int64))
    num_shown: int = 0
    item_labels: dict[str, Tensor] = field(default_factory=dict)
    catalogue: str | None = None

    @property
    def num_items(self) -> tuple[int, ...]:
        """How many items are encoded, over all ranks: M fresh ones, and U without events if any."""
        fresh = self.fresh.shape[0]
        return (fresh,) if self.unlabelled is None else (fresh, len(self.unlabelled.item_index))

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
            counted=self.counted.to(device),
            offsets=self.offsets.to(device),
            fresh=self.fresh.to(device),
            inverse_probability=self.inverse_probability.to(device),
            media=media_to(self.media, device),
            candidates=None if self.candidates is None else self.candidates.to(device),
            log_inclusion=None if self.log_inclusion is None else self.log_inclusion.to(device),
            queries=None if self.queries is None else self.queries.to(device),
            unlabelled=None if self.unlabelled is None else self.unlabelled.to(device),
            weights=None if self.weights is None else self.weights.to(device),
            signals=None if self.signals is None else self.signals.to(device),
            heads={name: each.to(device) for name, each in self.heads.items()},
            shown=self.shown.to(device),
            item_labels={name: each.to(device) for name, each in self.item_labels.items()},
        )


class BatchStream(IterableDataset[Batch]):
    """The batches of an epoch from a given one on; shared evenly by the loader's workers.

    Args:
        plan: order of samples.
        histories: where they are read.
        row_of: (item rows of the catalogue,) int64, training row of each item, -1 for none.
        item_index_of: (N,) int64, the inverse.
        items: media source; None where the model knows no media.
        fresh_items: M, None for all.
        targets: which events may be targets.
        seed: of the run.
        freeze_epochs: epochs at the start in which no item is encoded.
        candidates: items drawn for the loss; None: all.
        counts: (N,) training events of each item, for the probability of being drawn; needed with
            `candidates`.
        rank: of this process; the global batches are the same for any number of them.
        world: number of processes.
        queries: draws some for the items of a step; None where no loss asks for them.
        unlabelled: draws items without events; None for none.
        hidden_share: share of the events that are targets, where they are hidden; None: all are.
        signals: draws what is told of histories; None where the model reads none.
        start: an event stands before each user's first.
        event_weights: (types + 1,) of a target in the loss, by the code of its event, the last for
            events without a type; None: 1 each.
        heads: labels of what the model tells beside the next item; None for nothing.
        item_labels: labels of items that the model tells; None for none.
        reorder: puts histories into another order; None: all are read as they were.
    """

    def __init__(
        self,
        plan: EpochPlan,
        histories: HistorySource,
        *,
        row_of: IntArray,
        item_index_of: IntArray,
        items: ItemSource | None,
        fresh_items: int | None,
        targets: TargetRule,
        seed: int,
        freeze_epochs: int = 0,
        candidates: int | None = None,
        counts: IntArray | None = None,
        rank: int = 0,
        world: int = 1,
        queries: QuerySource | None = None,
        unlabelled: UnlabelledSource | None = None,
        hidden_share: float | None = None,
        signals: SignalSource | None = None,
        start: bool = False,
        event_weights: npt.NDArray[np.float32] | None = None,
        heads: LabelSource | None = None,
        item_labels: ItemLabels | None = None,
        reorder: Reorder | None = None,
    ) -> None:
        self.reorder = reorder
        self.heads, self.item_labels = heads, item_labels
        self.event_weights = event_weights
        self.signals, self.start = signals, start
        self.hidden_share = hidden_share
        self.candidates, self.counts = candidates, counts
        self.queries, self.unlabelled = queries, unlabelled
        self.freeze_epochs = freeze_epochs
        self.rank, self.world = rank, world
        self.plan, self.histories = plan, histories
        self.row_of, self.item_index_of = row_of, item_index_of
        self.items, self.fresh_items, self.targets, self.seed = items, fresh_items, targets, seed
        self.epoch, self.first_batch = 0, 0

    def __iter__(self) -> Iterator[Batch]:
        """Batches first_batch, … of the epoch; with W workers, every W-th of them."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for index, samples in enumerate(self.plan.batches(self.epoch)):
            if index >= self.first_batch and (index - self.first_batch) % workers == number:
                yield self.prepare(samples, index)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.plan.num_batches(epoch)

    def prepare(self, samples: Samples, index: int) -> Batch:
        """Reads a batch's histories and the media of its fresh items: of each a rank's share.

        The histories of the whole batch are read in any case: which items are fresh depends on all
        of its targets.
        """
        rows, counted, weighed, told, users, labels = [], [], [], [], [], []
        shown: list[IntArray] = []
        for history, start, stop in zip(samples.history, samples.start, samples.stop, strict=True):
            record = self.histories.read(int(history))
            if self.reorder is not None:
                record = self.reorder.of(record, epoch=self.epoch, history=int(history))
            items = self.row_of[record.item_index[start:stop]]
            allowed = self.targets.allowed(record.event, record.value, start, stop)
            begins = self.start and start == 0
            rows.append(np.concatenate([[len(self.item_index_of)], items]) if begins else items)
            counted.append(allowed if begins else allowed[1:])
            if self.event_weights is not None:
                weights = self._weights(record.event, int(start), int(stop))
                weighed.append(weights if begins else weights[1:])
            shown.append(self._shown(record, int(start), int(stop), begins=begins))
            if self.heads is not None:
                first = int(start) + (not begins)
                labels.append(self.heads.of_stretch(record, first, int(stop)))
            if self.signals is not None:
                columns = columns_of(record).take(slice(int(start), int(stop)))
                if begins:
                    columns = join_columns([unknown_events(1, list(columns.context)), columns])
                told.append(columns)
                users.append(record.user_index)
        targets = np.concatenate([each[1:] for each in rows])
        if min(each.min(initial=0) for each in rows) < 0:
            raise AssertionError("a training history holds an item that is not in training")
        if self.hidden_share is not None:
            random = np.random.default_rng((self.seed, self.epoch, 11, index))
            counted = [hide_some(each, self.hidden_share, random) for each in counted]
        num_counted = sum(int(each.sum()) for each in counted)
        total_weight = 0.0
        if self.event_weights is not None:
            pairs = zip(counted, weighed, strict=True)
            total_weight = float(sum(weights[each].sum() for each, weights in pairs))
        # histories stand by length: every world-th gives each rank short ones and long ones
        part = slice(self.rank, None, self.world)
        places = list(range(len(rows)))[part]
        rows, counted, told, users = rows[part], counted[part], told[part], users[part]
        weighed = weighed[part]
        num_shown = sum(each.shape[1] for each in shown)
        of_heads: dict[str, HeadLabels] = {}
        if self.heads is not None:
            own_labels = labels[part] or [self.heads.nothing(1)]
            of_heads = self.heads.join(own_labels, self.heads.count(labels))
        if not rows:  # fewer histories than ranks: one that counts nothing, so that all take part
            rows, counted = [np.zeros(2, np.int64)], [np.zeros(1, np.bool_)]
            told, users, places = [unknown_events(2)], [-1], [self.rank]
            weighed = [np.zeros(1, np.float32)]
        signals = None
        if self.signals is not None:
            signals = self.signals.draw(told, users, epoch=self.epoch, batch=index, places=places)
        media: dict[str, ModalityInput] = {}
        fresh = np.zeros(0, np.int64)
        weight = np.zeros(0, np.float32)
        own, queries, unlabelled = (0, 0), None, None
        if self.items is not None and self.epoch >= self.freeze_epochs:
            fresh, weight = draw_fresh(
                targets,
                num_items=self.item_index_of.shape[0],
                size=self.fresh_items,
                random=np.random.default_rng((self.seed, self.epoch, 3, index)),
            )
            own = share_of(fresh.shape[0], rank=self.rank, world=self.world)
            encoded = fresh[own[0] : own[1]] if own[1] > own[0] else fresh[:1]
            media = self.items.collate(self.item_index_of[encoded])
            if self.unlabelled is not None:
                unlabelled = self.unlabelled.draw(
                    epoch=self.epoch, batch=index, rank=self.rank, world=self.world
                )
            queries = self._draw_queries(fresh, own, unlabelled, index)
        compared, log_inclusion = None, None
        if self.candidates is not None:
            assert self.counts is not None
            compared, log_inclusion = draw_candidates(
                targets,
                fresh,
                self.counts,
                size=self.candidates,
                random=np.random.default_rng((self.seed, self.epoch, 7, index)),
            )
        lengths = np.array([each.shape[0] - 1 for each in rows], np.int64)
        return Batch(
            epoch=self.epoch,
            index=index,
            inputs=torch.from_numpy(np.concatenate([each[:-1] for each in rows])),
            targets=torch.from_numpy(np.concatenate([each[1:] for each in rows])),
            counted=torch.from_numpy(np.concatenate(counted)),
            offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
            fresh=torch.from_numpy(fresh),
            inverse_probability=torch.from_numpy(weight),
            media=media,
            own=own,
            num_counted=num_counted,
            total_weight=total_weight,
            weights=None
            if self.event_weights is None
            else torch.from_numpy(np.concatenate(weighed)),
            rank=self.rank,
            world=self.world,
            candidates=None if compared is None else torch.from_numpy(compared),
            log_inclusion=None if log_inclusion is None else torch.from_numpy(log_inclusion),
            queries=queries,
            unlabelled=unlabelled,
            signals=signals,
            heads=of_heads,
            shown=torch.from_numpy(_join_shown(shown[part], lengths)),
            num_shown=num_shown,
            item_labels={} if self.item_labels is None else self.item_labels.of(fresh),
        )

    def _shown(self, record: History, start: int, stop: int, *, begins: bool) -> IntArray:
        """(2, e) positions among a stretch's inputs, and rows of what was shown behind them."""
        if not len(record.shown_items):
            return np.zeros((2, 0), np.int64)
        place = record.shown_before - 1 - start + begins
        rows = self.row_of[record.shown_items]
        kept = not_met(record) & (place >= 0) & (record.shown_before < stop) & (rows >= 0)
        return np.stack([place[kept], rows[kept]])

    def _weights(self, event: Any, start: int, stop: int) -> npt.NDArray[np.float32]:
        """(stop - start,) weights of the events start..stop of a history."""
        assert self.event_weights is not None
        if event is None:
            return np.full(stop - start, self.event_weights[-1])
        return self.event_weights[event[start:stop]]  # -1, no type, is the last

    def _draw_queries(
        self, fresh: IntArray, own: tuple[int, int], unlabelled: Unlabelled | None, index: int
    ) -> Queries | None:
        """Queries of this rank's fresh items, then of its unlabelled ones, among those of all."""
        if self.queries is None:
            return None
        items, places = self.item_index_of[fresh], [*range(*own)]
        if unlabelled is not None:
            start, stop = (len(fresh) + each for each in unlabelled.own)
            items, places = (
                np.concatenate([items, unlabelled.item_index]),
                [*places, *range(start, stop)],
            )
        # of a rank that encodes nothing the first stands in, as it does among the media
        return self.queries.draw(items, places or [0], epoch=self.epoch, batch=index)


def _join_shown(parts: Sequence[IntArray], lengths: IntArray) -> IntArray:
    """(2, E) of all stretches, their positions among those of the batch."""
    first = np.cumsum(lengths) - lengths
    moved = [each + np.array([[at], [0]]) for each, at in zip(parts, first.tolist(), strict=False)]
    return np.concatenate([np.zeros((2, 0), np.int64), *moved], axis=1)


def share_of(num: int, *, rank: int, world: int) -> tuple[int, int]:
    """The range of `num` things that a rank takes: consecutive, sizes differ by one at most."""
    small, larger = divmod(num, world)
    start = rank * small + min(rank, larger)
    return start, start + small + (rank < larger)


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def batch_loader(
    stream: BatchStream | MixedStream, *, epoch: int, first_batch: int, num_workers: int
) -> DataLoader[Batch]:
    """A loader over the stream from (epoch, first_batch) on, in order at any number of workers.

    No more workers than cores are started; the batches are the same.
    """
    num_workers = min(num_workers, available_cores())
    stream.epoch, stream.first_batch = epoch, first_batch
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
    )
