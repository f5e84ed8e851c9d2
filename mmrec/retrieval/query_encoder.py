"""Contents of what is asked for: texts in one batch, and those asked last are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from mmrec.retrieval.content import encode_queries
from mmrec.retrieval.retriever import Retriever

_KEPT = 1024


class QueryEncoder:
    """Encodes queries with a model.

    Args:
        retriever: whose model it is.
    """

    def __init__(self, retriever: Retriever) -> None:
        self._retriever = retriever
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Contents (n, D) of texts; those that are not kept are encoded in one batch.

        Raises: as `encode_queries`.
        """
        found = {}
        with self._lock:
            for text in set(texts) & self._kept.keys():
                self._kept.move_to_end(text)
                found[text] = self._kept[text]
        absent = [text for text in dict.fromkeys(texts) if text not in found]
        if absent:
            found |= zip(absent, encode_queries(self._retriever, "text", absent), strict=True)
            with self._lock:
                self._kept.update((text, found[text]) for text in absent)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return torch.stack([found[text] for text in texts])

    def media(self, media: Mapping[str, Path | str | bytes]) -> Tensor:
        """Content (D,) of one query of several media: each counts as much as any other.

        They are not fused like the media of an item, since fusion may learn to look at one of them
        where it has several, and whoever gives two means both.

        Args:
            media: a text, or the path or the bytes of a file, by modality.

        Raises: as `encode_queries`.
        """
        parts = [
            self.texts([str(query)])[0]
            if modality == "text"
            else encode_queries(self._retriever, modality, [query])[0]
            for modality, query in media.items()
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.nn.functional.normalize(torch.stack(parts).sum(0), dim=0)
