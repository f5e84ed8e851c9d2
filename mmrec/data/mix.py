"""The batches of several catalogues as one stream, interleaved in proportion.

    music  ─ pass 0 ─ m m m m m m ─┐
    shop   ─ pass 0 ─ s s s        ├─► m s m m s m m s m     epoch 0 at weights 1 and 1
                                   ┘
A batch is of one catalogue. A catalogue of weight w is passed over w times in an epoch: epoch e has
its passes from e w to (e + 1) w, so that at 1 every sample comes once an epoch, and at .5 one half
in one epoch and the other in the next. The order is a function of (seed, epoch), a position in it
(epoch, batch), as of one catalogue (`mmrec.data.histories`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from mmrec.data.batch import Batch, BatchStream
from mmrec.data.histories import Samples


@dataclass(frozen=True)
class Share:
    """Batches start..stop of one pass over a catalogue."""

    number: int
    start: int
    stop: int


def shares_of(epoch: int, weight: float, stream: BatchStream) -> list[Share]:
    """What an epoch takes of a catalogue: parts of its passes, in order.

    Args:
        epoch: of the mix.
        weight: passes an epoch.
        stream: of the catalogue.
    """
    begin, end = epoch * weight, (epoch + 1) * weight
    shares = []
    for number in range(math.floor(begin), math.ceil(end)):
        batches = stream.num_batches(number)
        start = round(max(begin - number, 0) * batches)
        stop = round(min(end - number, 1) * batches)
        if stop > start:
            shares.append(Share(number, start, stop))
    return shares


class MixedStream(IterableDataset[Batch]):
    """The batches of an epoch from a given one on; shared evenly by the loader's workers.

    Args:
        streams: of each catalogue.
        weights: passes over each in an epoch, above 0.
        seed: of the run.
    """

    def __init__(
        self, streams: Mapping[str, BatchStream], weights: Mapping[str, float], *, seed: int
    ) -> None:
        self.streams, self.weights, self.seed = dict(streams), dict(weights), seed
        self.epoch, self.first_batch = 0, 0

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch, of all catalogues."""
        return len(self.order(epoch))

    def order(self, epoch: int) -> list[str]:
        """Whose batch comes when: spread evenly, from an offset that differs by epoch."""
        random = np.random.default_rng((self.seed, epoch, 8))
        places = []
        for name, stream in self.streams.items():
            shares = shares_of(epoch, self.weights[name], stream)
            number = sum(share.stop - share.start for share in shares)
            offset = random.random()
            places += [((place + offset) / number, name) for place in range(number)]
        return [name for _, name in sorted(places)]

    def _samples(self, name: str) -> Iterator[Samples]:
        """The samples of an epoch's batches of one catalogue."""
        stream = self.streams[name]
        for share in shares_of(self.epoch, self.weights[name], stream):
            yield from islice(stream.plan.batches(share.number), share.start, share.stop)

    def __iter__(self) -> Iterator[Batch]:
        """Batches first_batch, … of the epoch; with W workers, every W-th of them."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        waiting = {name: self._samples(name) for name in self.streams}
        for index, name in enumerate(self.order(self.epoch)):
            samples = next(waiting[name])
            if index >= self.first_batch and (index - self.first_batch) % workers == number:
                stream = self.streams[name]
                stream.epoch = self.epoch  # what is drawn for a batch is a function of its place
                yield replace(stream.prepare(samples, index), catalogue=name)
