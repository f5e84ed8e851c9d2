"""Histories in another order, drawn anew each epoch: for catalogues whose order says little.

Where the order of a log carries no taste, what came before an event is as good a history of it as
any other part, and a model that has seen one order alone learns that order by heart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_prep.shards import History


@dataclass(frozen=True)
class Reorder:
    """Reads a share of the histories in another order.

    Attributes:
        share: of the histories, in each epoch others.
        seed: of the run.
    """

    share: float
    seed: int

    def of(self, record: History, *, epoch: int, history: int) -> History:
        """A history as an epoch reads it, the same for each of its stretches.

        Args:
            record: as it was. What was shown between its events must not be asked for: its places
                are left as they are.
            epoch: in which it is read.
            history: its row.
        """
        random = np.random.default_rng((self.seed, epoch, 17, history))
        if random.random() >= self.share:
            return record
        order = random.permutation(len(record.item_index))
        context = record.context
        return replace(
            record,
            item_index=record.item_index[order],
            time=None if record.time is None else record.time[order],
            event=None if record.event is None else record.event[order],
            value=None if record.value is None else record.value[order],
            context=context
            and {name: [values[place] for place in order] for name, values in context.items()},
        )
