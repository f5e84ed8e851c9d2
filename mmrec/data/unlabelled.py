"""Items that no event names: some join each step, for the losses that need no labels.

A catalogue holds more items than its log. What their media say of each other is there to be learnt
from; whom they please is not.

Legend: U unlabelled items of a step, over all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from data_prep.shards import PreparedData, Split
from mmrec.data.batch import share_of
from mmrec.data.corpus import never_cold
from mmrec.data.media import ItemSource, ModalityInput, media_to
from mmrec.data.ragged import IntArray
from mmrec.errors import ConfigError


@dataclass(frozen=True)
class Unlabelled:
    """The unlabelled items of a step.

    Attributes:
        item_index: (U,) catalogue index of each, over all ranks.
        own: range of them that this rank encodes.
        media: modality -> states or raw inputs of those; of the first where there are none.
    """

    item_index: IntArray
    own: tuple[int, int]
    media: dict[str, ModalityInput]

    def to(self, device: torch.device) -> Unlabelled:
        """The same items on a device."""
        return replace(self, media=media_to(self.media, device))


class UnlabelledSource:
    """Draws the unlabelled items of a step, as a function of (seed, epoch, batch) alone.

    Args:
        item_index: of all that may be drawn.
        items: their media.
        size: U; fewer where there are fewer.
        seed: of the run.
    """

    def __init__(self, item_index: IntArray, items: ItemSource, *, size: int, seed: int) -> None:
        self.item_index, self.items = item_index, items
        self.size, self.seed = min(size, len(item_index)), seed

    def draw(self, *, epoch: int, batch: int, rank: int, world: int) -> Unlabelled:
        """The items of a step, with the media of a rank's share."""
        random = np.random.default_rng((self.seed, epoch, 9, batch))
        chosen = np.sort(random.choice(self.item_index, self.size, replace=False))
        own = share_of(self.size, rank=rank, world=world)
        encoded = chosen[slice(*own)] if own[1] > own[0] else chosen[:1]
        return Unlabelled(chosen, own, self.items.collate(encoded))


def find_unlabelled(data: PreparedData, split: Split) -> IntArray:
    """Items that no event of the log names, and that no split of the folder keeps back as cold.

    Raises:
        ConfigError: there are none.
    """
    roles = split.items.select("item_index", "role").iter_rows()
    without_events = {item for item, role in roles if role == "no_events"}
    deleted = data.items.deleted
    found = [item for item in never_cold(data) if item in without_events and not deleted[item]]
    if not found:
        raise ConfigError(
            f"training.unlabelled_items is set, but every item of {data.path} has events or is "
            "cold in a split: set training.unlabelled_items=0"
        )
    return np.array(found, np.int64)
