"""Every rank runs every encoder that trains, whatever media its items have.

Sharded ranks gather an encoder's blocks together and average gradients together: one that left an
encoder out would keep the others waiting. So where none of a rank's items has a medium, one that
has it is encoded behind them. Its outcome is cut off with the other stand-ins' (see
`mmrec.training.distributed.GatherContents`), and its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from encoders.tokens import Tokens
from mmrec.data.histories import IntArray
from mmrec.data.media import ItemSource, ModalityInput


class StandIns:
    """A source of items that gives each modality in each share; one no item has is left alone.

    Args:
        source: media of items.
        having: by modality, items that should have the medium: the first whose medium can be
            encoded stands in.
    """

    def __init__(self, source: ItemSource, having: Mapping[str, IntArray]) -> None:
        self.source = source
        self.item_of: dict[str, int] = {}
        for modality, items in having.items():
            for row in range(len(items)):
                if has_any(source.collate(items[row : row + 1])[modality]):
                    self.item_of[modality] = int(items[row])
                    break

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        """Every modality of the items, and behind them of those that stand in."""
        media = self.source.collate(item_index)
        behind = [item for name, item in self.item_of.items() if not has_any(media[name])]
        if not behind:
            return media
        return self.source.collate(np.append(item_index, np.unique(behind)))


def has_any(medium: ModalityInput) -> bool:
    """Whether one of the items has the medium."""
    present = medium.mask if isinstance(medium, Tokens) else medium["present"]
    return bool(present.any())
