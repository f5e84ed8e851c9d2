"""What the second stage reads of candidates and of users, in training and in use alike.

    item vectors, stored latents ─► Candidates         histories, what is told of them ─► Past

Legend: N items · B users · C candidates · T tokens of a candidate · Q latents · D width.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion.blocks import Packing
from fusion.ranker import Candidates, Past
from mmrec.data.ragged import IntArray, Ragged
from mmrec.data.told import Told
from mmrec.model import RecommenderModel
from mmrec.vectors import ItemVectors, pack_histories

NUM_FEATURES = 3
"""Logit of retrieval, popularity, and whether nobody has met the item."""
# Logits of retrieval lie between -10 and 10 or so.
LOGIT_UNIT = 10.0
Latents = npt.NDArray[np.float16]


class RankerInputs:
    """Reads candidates and histories as a frozen retriever knows them.

    Args:
        model: the retriever's.
        vectors: of all N items.
        counts: (N,) training events of each item.
        latents: (n, 1 + Q, D) of the first n items, their content and behind it the latents that
            it was made of; may be a file that is mapped. None where the fusion has no latents. An
            item whose content is another by now, or that has come since, shows its content alone.
    """

    def __init__(
        self,
        model: RecommenderModel,
        vectors: ItemVectors,
        counts: IntArray,
        latents: Latents | None,
    ) -> None:
        self.model, self.vectors, self.latents = model, vectors, latents
        self.device = vectors.embedding.device
        popularity = np.log1p(counts) / math.log1p(max(int(counts.max(initial=0)), 1))
        features = np.stack([popularity, counts == 0], axis=1).astype(np.float32)
        self._of_items = torch.from_numpy(features).to(self.device)

    @property
    def num_tokens(self) -> int:
        """T: embedding, content, latents, as far as there are any."""
        latents = 0 if self.latents is None else self.latents.shape[1] - 1
        return 1 + (self.vectors.content is not None) + latents

    def candidates(
        self, items: IntArray, scores: Tensor, as_new: Tensor | None = None
    ) -> Candidates:
        """Candidates of B users.

        Args:
            items: (B, C) item_index, -1 for none.
            scores: (B, C) of retrieval, in units of cosine; of -1 anything.
            as_new: (B, C) bool, shown as if nobody had met them, of a model that knows media; None:
                none is.
        """
        real = torch.from_numpy(items >= 0).to(self.device)
        rows, place = np.unique(np.maximum(items, 0), return_inverse=True)  # each is read once
        tokens, mask = self._tokens(rows)
        at = torch.from_numpy(place.reshape(items.shape)).to(self.device)
        logits = scores / self.model.temperature.detach() / LOGIT_UNIT
        known = self._of_items[torch.from_numpy(rows).to(self.device)][at]
        tokens = tokens[at]
        if as_new is not None:
            content = tokens[:, :, 1:2].expand_as(tokens[:, :, :1])
            first = torch.where(as_new[..., None, None], content, tokens[:, :, :1])
            tokens = torch.cat([first, tokens[:, :, 1:]], dim=2)
            known = torch.where(as_new[..., None], known.new_tensor([0.0, 1.0]), known)
        features = torch.cat([logits.masked_fill(~real, 0.0)[..., None], known], dim=-1)
        return Candidates(tokens, mask[at] & real[..., None], features)

    def _tokens(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """(n, T, D) of some items, and which are real, (n, T) bool."""
        at = torch.from_numpy(rows).to(self.device)
        parts = [self.vectors.embedding[at][:, None]]
        if self.vectors.content is not None:
            parts.append(self.vectors.content[at][:, None])
        mask = torch.ones(len(rows), self.num_tokens, dtype=torch.bool, device=self.device)
        if self.latents is not None:
            assert self.vectors.content is not None
            stored = np.zeros((len(rows), *self.latents.shape[1:]), np.float16)
            kept = rows < len(self.latents)
            stored[kept] = self.latents[rows[kept]]
            content = self.vectors.content[at].half().cpu().numpy()
            fresh = kept & (stored[:, 0] == content).all(1)
            mask[:, len(parts) :] = torch.from_numpy(fresh)[:, None].to(self.device)
            parts.append(torch.from_numpy(stored[:, 1:]).to(self.device, torch.float32))
        return torch.cat(parts, dim=1), mask

    @torch.no_grad()
    def past(
        self,
        users: Tensor,
        histories: Ragged,
        told: Told | None,
        *,
        embedding: Tensor | None = None,
    ) -> Past:
        """Users with the states of their histories; of long ones of the last events.

        Args:
            users: (B, D) that retrieval asks with.
            histories: B rows of item_index, oldest first.
            told: what is known of their events and users; None where the model reads no signals.
            embedding: (n, D) that rows of histories stand for; None: of the items.
        """
        model = self.model
        table = self.vectors.embedding if embedding is None else embedding
        B, D = users.shape
        chosen = np.arange(B)
        if model.history.start is None:
            chosen = np.flatnonzero(histories.lengths > 0)
        if not len(chosen):
            nothing = users.new_zeros(B, 0, D)
            return Past(users, nothing, nothing, nothing[..., 0].bool())
        items, offsets, signals = pack_histories(model, table, histories, told, chosen)
        if signals is not None:  # what is asked now is in the user's own state
            signals = replace(signals, requests=None)
        states = model.users(items, offsets, signals=signals)
        packing = Packing(offsets)
        at = torch.from_numpy(chosen).to(self.device)

        def padded(values: Tensor) -> Tensor:
            found = users.new_zeros(B, packing.longest, D)
            return found.index_copy(0, at, packing.pad(packing.fill(values.float())))

        mask = torch.zeros(B, packing.longest, dtype=torch.bool, device=self.device)
        return Past(users, padded(states), padded(items), mask.index_copy(0, at, packing.is_event))
