"""A catalogue's texts as pieces: those that a text model learns from, and those that measure it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from torch import Tensor

from data_prep.shards import PreparedData
from encoders.text_transform import TextTransform
from mmrec.data.corpus import never_cold
from mmrec.errors import ConfigError

HELD_OUT_SHARE, MOST_HELD_OUT = 0.05, 500
"""Items whose texts measure and do not train: enough for a figure, few enough to look at twice."""


class Texts:
    """Texts of a catalogue as pieces, read when they are asked for.

    Args:
        data: a prepared folder.
        transform: the text encoder's own, so that a text is cut as a run will cut it.
    """

    def __init__(self, data: PreparedData, transform: TextTransform) -> None:
        self.data, self.transform = data, transform

    def split(self) -> tuple[list[int], list[int]]:
        """Items whose texts train, and those held out, which a hash of their ids chooses.

        Raises:
            ConfigError: fewer than two items have a text.
        """
        has_text = self.data.items.has("text")
        items = [item for item in never_cold(self.data) if has_text[item]]
        if len(items) < 2:
            raise ConfigError(
                f"{self.data.path}: {len(items)} items that are cold in no split have a text, two "
                "are the least; check items.text of the catalogue"
            )
        ids = self.data.items.item_ids
        digest = {i: hashlib.sha256(f"held_out:{ids[i]}".encode()).digest() for i in items}
        number = min(math.ceil(HELD_OUT_SHARE * len(items)), MOST_HELD_OUT)
        held_out = set(sorted(items, key=digest.__getitem__)[:number])
        return [i for i in items if i not in held_out], sorted(held_out)

    def read(self, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pieces of some texts, a row a chunk: token_ids (R, L) int64 and mask (R, L) bool."""
        samples = (self.transform(self.data.items.text(item)) for item in items)
        chunks = [
            chunk
            for sample in samples
            if sample is not None
            for chunk in sample.split(self.transform.max_length)
        ]
        inputs = self.transform.collate(chunks)
        return inputs["token_ids"], inputs["mask"]
