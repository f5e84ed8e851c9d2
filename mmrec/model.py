"""The recommender's network: item embeddings from content and id, users from their histories.

    media ─ encoders ─► tokens ─ fusion ─► content c ─ (+ id part) ─► item e ─┐
                                                                             ├─ <u, e> / tau + beta
    history of item embeddings ─ history encoder ─────────────────► user u ──┘

Legend: B users · P events of their histories · M items encoded · R items in training, one row
each · D width. Rows are the order of the model's own id table, not of the catalogue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.tokens import Tokens
from fusion.completion import Completion
from fusion.confidence import Confidence
from fusion.heads import Head
from fusion.history import Ask, HistoryEncoder, truncate
from fusion.labels import LabelHead
from fusion.signals import SignalEncoder, Signals
from mmrec.data.item_labels import LabelSet
from mmrec.data.labels import HeadSpec
from mmrec.data.media import ModalityInput
from mmrec.data.signals import SignalReader
from mmrec.loss_weights import LossWeights


class IdPart(nn.Module):
    """The learned vector of an item, bounded and gated by how often training met the item.

        e = normalise(c + g * b * d / max(1, |d|)),   g = n / (n + kappa)

    An item without a learned vector is exactly its content c; one that also lacks media that nearly
    all items of training have is what the rest lets expect of it, see `embeddings_of_new`.

    Args:
        counts: (R,) training events n of each row.
        width: D.
        bound: b, the largest length of the part.
        gate: kappa.
        alone: the item is its id: e = normalise(d), d starts random.
    """

    counts: Tensor

    def __init__(
        self, counts: Tensor, *, width: int, bound: float, gate: float, alone: bool
    ) -> None:
        super().__init__()
        self.bound, self.gate, self.alone = bound, gate, alone
        self.table = nn.Embedding(counts.shape[0], width)
        self.register_buffer("counts", counts.float())
        if alone:
            nn.init.normal_(self.table.weight, std=1 / math.sqrt(width))
        else:
            nn.init.zeros_(self.table.weight)

    def forward(self, content: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """Embeddings of all rows, or of some.

        Args:
            content: (R, D) unit content of each row; None where the item is its id.
            rows: (n,) int64, which rows; None: all R. Content is then theirs, (n, D).

        Returns:
            (R, D) unit vectors, or (n, D).
        """
        table, counts = self.table.weight, self.counts
        if rows is not None:
            table, counts = self.table(rows), counts.index_select(0, rows)
        if self.alone:
            return F.normalize(table, dim=-1)
        assert content is not None
        bounded = table / table.norm(dim=-1, keepdim=True).clamp(min=1)
        gate = counts / (counts + self.gate) if self.gate else counts.clamp(max=1)
        return F.normalize(content + self.bound * gate[:, None] * bounded, dim=-1)


class Popularity(nn.Module):
    """The part of the score that depends on an item's number of events alone.

        beta(n) = a (x - mean x) + b (x^2 - mean x^2),   x = log(1 + n) / log(1 + largest n)

    Centred over the items of training; an item without events gets 0, what the average item gets.
    It starts at the log of the counts, the best there is before anything is learnt of users: with
    beta = 0 at the start every content was first drawn to one axis, that of popularity, and stayed
    there. Kept out of vector norms, where it would bury new items.

    Args:
        counts: (R,) training events of each row.
    """

    scale: Tensor
    means: Tensor

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        largest = float(counts.max()) if counts.numel() else 0.0
        scale = math.log1p(max(largest, 1.0))
        x = torch.log1p(counts.float()) / scale
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("means", torch.stack([x.mean(), x.square().mean()]))
        self.coefficients = nn.Parameter(torch.tensor([scale, 0.0]))

    def recentre(self, counts: Tensor) -> None:
        """Take other items' (R,) counts for the centre; what an event adds stays what it is."""
        x = torch.log1p(counts.float()) / self.scale
        self.means.copy_(torch.stack([x.mean(), x.square().mean()]))

    def forward(self, counts: Tensor) -> Tensor:
        """(R,) counts -> (R,) additions to the logits."""
        x = torch.log1p(counts.float()) / self.scale
        terms = torch.stack([x, x.square()], dim=-1) - self.means
        return torch.where(counts > 0, (terms * self.coefficients).sum(-1), 0.0)


class RecommenderModel(nn.Module):
    """Encoders, fusion, id part and user model under one score.

    Args:
        encoders: modality -> encoder; empty where the item is its id.
        cached: modalities whose inputs are states at the cut.
        fusion: tokens -> content; None where the item is its id.
        id_part: None where the item is its content.
        popularity: None where it is switched off.
        history: the user model.
        counts: (R,) training events of each row.
        temperature: tau at the start.
        min_temperature: its floor.
        popularity_share: share of the popularity term in use; training always has all of it.
        new_boost: what scores of items without events get in use beside the offset, in cosine.
        aligned: modalities are drawn together, at a learned temperature that starts at .07.
        queried: texts are drawn to the items they ask for, at another such temperature.
        domain: a token of the catalogue's own stands in front of every history.
        signals: what is learnt of events, requests and users beside items; None: nothing is read.
        reader: turns what is told of them into its facts; None with `signals`.
        heads: what is told beside the next item, by name.
        head_specs: how their labels are made.
        labels: heads that tell labels of an item from its content, by name.
        label_sets: which labels.
        loss_weights: of the heads and labels; None where there are none.
    """

    counts: Tensor
    offset: Tensor
    expectation: Tensor

    def __init__(
        self,
        *,
        encoders: Mapping[str, nn.Module],
        cached: frozenset[str],
        fusion: nn.Module | None,
        id_part: IdPart | None,
        popularity: Popularity | None,
        history: HistoryEncoder,
        counts: Tensor,
        temperature: float,
        min_temperature: float,
        popularity_share: float = 1.0,
        new_boost: float = 0.0,
        aligned: bool = False,
        queried: bool = False,
        domain: bool = False,
        signals: SignalEncoder | None = None,
        reader: SignalReader | None = None,
        heads: Mapping[str, Head] | None = None,
        head_specs: Mapping[str, HeadSpec] | None = None,
        labels: Mapping[str, LabelHead] | None = None,
        label_sets: Mapping[str, LabelSet] | None = None,
        loss_weights: LossWeights | None = None,
    ) -> None:
        super().__init__()
        # a module's name may hold no dot (`vector.clip`)
        self.encoders = nn.ModuleDict({k.replace(".", "_"): v for k, v in encoders.items()})
        self.cached = cached
        self.fusion = fusion
        self.completion = None if fusion is None else Completion(list(encoders), history.width)
        self.confidence = None if fusion is None else Confidence(list(encoders))
        self.id_part = id_part
        self.popularity = popularity
        self.history = history
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.min_temperature = min_temperature
        self.log_alignment_temperature = (
            nn.Parameter(torch.tensor(math.log(0.07))) if aligned else None
        )
        self.log_query_temperature = nn.Parameter(torch.tensor(math.log(0.07))) if queried else None
        self.domain: nn.Parameter | None = None
        if domain:  # as long as an item
            self.domain = nn.Parameter(torch.randn(1, history.width) / math.sqrt(history.width))
        self.signals, self.reader = signals, reader
        self.heads = nn.ModuleDict(dict(heads or {}))
        self.head_specs = dict(head_specs or {})
        for name, spec in self.head_specs.items():
            if spec.kind == "value":  # how far each item's values lie from the mean of all
                self.register_buffer(f"value_offsets_{name}", torch.zeros(counts.shape[0]))
        # an attribute may be called like a method of ModuleDict, `type` or `items`
        self.labels = nn.ModuleDict({f"of_{name}": head for name, head in (labels or {}).items()})
        self.label_sets = dict(label_sets or {})
        self.loss_weights = LossWeights({}) if loss_weights is None else loss_weights
        # dials in use, not of the checkpoint: one run can be asked with several
        self.popularity_share = popularity_share
        self.new_boost = new_boost
        self.register_buffer("counts", counts.float())
        # both added to the logits of items without events; chosen on validation, dials in use: a
        # number for all, and popularity told from the content, by weights of it and a constant
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("expectation", torch.zeros(history.width + 1))

    @property
    def width(self) -> int:
        """D."""
        return self.history.width

    @property
    def value_offsets(self) -> dict[str, Tensor]:
        """(R,) of each head of values: how far an item's values lie from the mean of all."""
        return {
            name: self.get_buffer(f"value_offsets_{name}")
            for name, spec in self.head_specs.items()
            if spec.kind == "value"
        }

    @property
    def label_heads(self) -> dict[str, LabelHead]:
        """What tells labels of items, by name."""
        heads: Any = self.labels
        return {name: heads[f"of_{name}"] for name in self.label_sets}

    @property
    def temperature(self) -> Tensor:
        """tau, learned, never below its floor."""
        return self.log_temperature.exp().clamp(min=self.min_temperature)

    def tokens(self, media: Mapping[str, ModalityInput]) -> dict[str, Tokens]:
        """Each modality's tokens (M, T, W) from cached states or raw inputs."""
        return {
            name: self.encoder(name).above(each)
            if isinstance(each, Tokens)
            else self.encoder(name)(each)
            for name, each in media.items()
        }

    def content(self, media: Mapping[str, ModalityInput], had: Tensor | None = None) -> Tensor:
        """Content of M items.

        Args:
            media: modality -> cached states or raw inputs of M items.
            had: (M, modalities) bool, those that training met the items with: what they have lost
                since is made up for; None: nothing is.

        Returns:
            (M, D) unit vectors; of what was made up for shorter ones, see `Completion`.
        """
        assert self.fusion is not None and self.completion is not None
        tokens = self.tokens(media)
        content: Tensor = self.fusion(tokens)
        if had is None:
            return content
        missing = [~tokens[name].mask.any(1) for name in self.completion.modalities]
        completed: Tensor = self.completion(content, torch.stack(missing, 1) & had)
        return completed

    def embeddings(self, content: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """Embeddings e of every row, or of some.

        Args:
            content: (R, D) of every row, or (n, D) of those in `rows`; None for ids alone.
            rows: (n,) int64; None: all.

        Returns:
            (R, D) or (n, D) unit vectors.
        """
        if self.id_part is None:
            assert content is not None
            return content
        embeddings: Tensor = self.id_part(content, rows)
        return embeddings

    def embeddings_of_new(self, content: Tensor, has: Tensor) -> Tensor:
        """Embeddings e of items that training did not meet: their content, as users expect it.

        What nearly all items of training have and these lack is told from the rest, for users'
        scores alone: search and similar items compare contents as they are.

        Args:
            content: (n, D) unit vectors made of what the items have.
            has: (n, M) bool, what they have, in the order of `completion`.

        Returns:
            (n, D) unit vectors, the content itself, where nothing is lacking; a little shorter
            where something is made up.
        """
        assert self.completion is not None
        embeddings: Tensor = self.completion.of_new(content, has)
        return embeddings

    def bias(self, counts: Tensor, content: Tensor | None = None) -> Tensor:
        """What a logit gets beside <u, e> / tau: popularity, or (in use) what stands in its place.

        In use only a share of the popularity counts. The term is centred, so a smaller share moves
        the head down and the tail up, and leaves the average item and those without events alone.

        Args:
            counts: (R,) training events.
            content: (R, D), for what items without events can expect, of such items as
                `embeddings_of_new` completes it; None for a model of ids.
        """
        bias = self.popularity(counts) if self.popularity is not None else counts * 0.0
        if self.training:
            return bias
        return self.popularity_share * bias + (counts == 0) * self.bias_of_new(content)

    def bias_of_new(self, content: Tensor | None) -> Tensor:
        """What the logits of items without events get: offset, boost, and expected popularity.

        Args:
            content: (n, D) as `embeddings_of_new` completes it; None for a model of ids.

        Returns:
            (n,), or a number.
        """
        offset = self.offset + self.new_boost / self.temperature.detach()
        if content is None:
            return offset
        return offset + content @ self.expectation[:-1] + self.expectation[-1]

    def shown(self, items: Tensor, rows: Tensor) -> Tensor:
        """What stands at the events of histories: (R, D) and (P,) rows, R for a start -> (P, D)."""
        if self.history.start is None:
            return items.index_select(0, rows)
        is_start = rows == items.shape[0]
        found = items.index_select(0, rows.masked_fill(is_start, 0))
        return torch.where(is_start[:, None], self.history.start.to(found.dtype), found)

    def users(
        self,
        items: Tensor,
        offsets: Tensor,
        hidden: Tensor | None = None,
        signals: Signals | None = None,
    ) -> Tensor:
        """States of the events of packed histories: (P, D), (B + 1,) -> (P, D) unit vectors.

        Args:
            items: (P, D) item embeddings.
            offsets: (B + 1,) int64.
            hidden: (P,) bool, events whose item is not shown, where histories are read both ways.
            signals: of P events, P requests and B users; None where the model reads none.
        """
        items, head, ask = self._with_signals(items, signals)
        states: Tensor = self.history(items, offsets, head, hidden, ask)
        return states

    def query(self, items: Tensor, offsets: Tensor, signals: Signals | None = None) -> Tensor:
        """The users behind histories of any length, none empty: (P, D), (B + 1,) -> (B, D).

        `signals` are of P events, B requests and B users; None where the model reads none.
        """
        longest = self.history.max_length + (self.history.start is not None)
        rows, kept = truncate(offsets, longest)
        if signals is not None:
            signals = signals.part(rows, slice(None), slice(None))
        items, head, ask = self._with_signals(items.index_select(0, rows), signals)
        return self.history.query(items, kept, head, ask)

    def _with_signals(
        self, items: Tensor, signals: Signals | None
    ) -> tuple[Tensor, Tensor | None, Ask | None]:
        """Items as their events show them, tokens in front, and what a request does to a state."""
        if self.signals is None:
            return items, self.domain, None
        if signals is None:
            raise ValueError("the model reads signals, and none were given")
        learnt = self.signals
        head: Tensor | None = self.domain
        ask: Ask | None = None
        if learnt.events is not None and signals.events is not None:
            items = learnt.events(items, signals.events)
        if learnt.users is not None and signals.users is not None:
            tokens: Tensor = learnt.users(signals.users)  # (B, F, D)
            head = tokens
            if self.domain is not None:
                head = torch.cat([self.domain.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if learnt.requests is not None and signals.requests is not None:
            ask = partial(learnt.requests, facts=signals.requests)
        return items, head, ask

    def parameter_counts(self) -> dict[str, dict[Literal["trainable", "frozen"], int]]:
        """Parameters by part of the model."""
        parts: dict[str, nn.Module | None] = {
            **{f"encoders.{name}": module for name, module in self.encoders.items()},
            "fusion": self.fusion,
            "id": self.id_part,
            "history": self.history,
            "signals": self.signals,
            "heads": self.heads if len(self.heads) else None,
            "labels": self.labels if len(self.labels) else None,
        }
        return {
            name: {
                "trainable": sum(p.numel() for p in part.parameters() if p.requires_grad),
                "frozen": sum(p.numel() for p in part.parameters() if not p.requires_grad),
            }
            for name, part in parts.items()
            if part is not None
        }

    def has(self, modality: str) -> bool:
        """Whether there is an encoder of a modality."""
        return modality.replace(".", "_") in self.encoders

    def encoder(self, modality: str) -> Any:
        """The encoder of a modality."""
        return self.encoders[modality.replace(".", "_")]
