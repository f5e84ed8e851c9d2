"""What a model reads of items: cached states or raw inputs, prepared or of new items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders.encoder import Inputs
from mmrec.data.cache import StateCache
from mmrec.data.histories import IntArray
from mmrec.data.items import ItemInputs
from mmrec.data.live import live_states
from mmrec.data.media import ModalityInput
from mmrec.model import RecommenderModel


class ModelInputs:
    """What the model reads of items: states at the cut from caches, raw inputs where all trains."""

    def __init__(self, caches: Mapping[str, StateCache], raw: ItemInputs | None) -> None:
        self.caches, self.raw = dict(caches), raw

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        """Every modality of the items."""
        media: dict[str, ModalityInput] = {
            name: cache.read(item_index) for name, cache in self.caches.items()
        }
        if self.raw is not None:
            media.update(self.raw.collate(item_index))
        return media


class LiveInputs:
    """The same for items of no prepared folder: cached modalities are encoded on the spot.

    States are rounded as the cache rounds them, so that a new item scores as it would from there.
    """

    def __init__(
        self, inputs: ItemInputs, model: RecommenderModel, dtypes: Mapping[str, Any]
    ) -> None:
        self.inputs, self.model, self.dtypes = inputs, model, dict(dtypes)

    def collate(self, item_index: IntArray) -> dict[str, ModalityInput]:
        """Every modality of the items."""
        return self.at_cut(self.inputs.collate(item_index))

    def at_cut(self, inputs: Mapping[str, Inputs]) -> dict[str, ModalityInput]:
        """What `inputs.collate` gave, which may be called ahead and in another thread."""
        device = self.model.counts.device
        media: dict[str, ModalityInput] = {}
        for name, raw in inputs.items():
            if name not in self.model.cached:
                media[name] = raw
                continue
            on_device = {key: value.to(device) for key, value in raw.items()}
            media[name] = live_states(self.model.encoder(name), on_device, self.dtypes[name])
        return media
