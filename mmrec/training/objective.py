"""What a step minimises: every position against all items, as they are and as if never met.

    fresh items' content ─┬─ clean ─► with the id part among all rows ─► loss
                          ├─ noisy ─► alone, as if never met ─────────► cold loss
                          └─ by one modality ─► as if never met ──────► modality loss

Legend: R items in training · M fresh items · P positions · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmrec.config import TrainingConfig
from mmrec.data.batch import Batch
from mmrec.model import RecommenderModel
from mmrec.training.distributed import GatherContents, gathering
from mmrec.training.fresh import fresh_content
from mmrec.training.gradient import scale_gradient
from mmrec.training.item_labels import label_losses
from mmrec.training.losses import catalogue_softmax, met_before, sampled_softmax
from mmrec.training.micro_batches import split_histories
from mmrec.training.one_modality import align, head_tables
from mmrec.training.text_query import match_queries
from mmrec.training.variety import variety_loss_of


@dataclass(frozen=True)
class Losses:
    """What a forward pass gives.

    Attributes:
        loss: of items as they are.
        cold_loss: of fresh items as if never met; None where there is none.
        num_targets: positions that both are means of.
        content: (M, D) of the fresh items as they are, before the update; None where nothing is
            encoded.
        alignment: of contents by one modality alone; None where it has no weight.
        modality_loss: of fresh items as if never met and by one modality alone, the mean over
            modalities; None where it has no weight.
        query_loss: of pieces of their texts that find the fresh items; None where there are none.
        heads: of each head.
        labels: of each set of labels of the fresh items; empty where nothing is encoded.
        shown_loss: of items met next beside those shown before; None where it has no weight.
        variety_loss: how alike two items are that are drawn for a user; None where it has no
            weight.
        log_variances: of the tasks, by the names they are logged with; empty where none is learned.
    """

    loss: Tensor
    cold_loss: Tensor | None
    num_targets: int
    content: Tensor | None
    alignment: Tensor | None
    modality_loss: Tensor | None
    query_loss: Tensor | None
    heads: dict[str, Tensor]
    labels: dict[str, Tensor]
    shown_loss: Tensor | None = None
    variety_loss: Tensor | None = None
    log_variances: dict[str, Tensor] = field(default_factory=dict)


def compute_losses(
    model: RecommenderModel,
    batch: Batch,
    bank: Tensor | None,
    config: TrainingConfig,
    *,
    modality_dropout: float,
    repeats_forbidden: bool,
    gather: GatherContents | None = None,
) -> Losses:
    """Losses of a batch with gradients for every trainable parameter.

    Both score every position against all R items, or against the batch's candidates. In the first,
    items are as they are in use. In the second the fresh ones are what an item without events is:
    content alone, without popularity; and what makes content hold for items not trained on, dropout
    and modalities left out, acts there and nowhere else. Users and id parts of warm items thus
    learn on embeddings without noise: with a share of all items treated as never met in one loss
    for both, warm NDCG@10 was a tenth lower (see docs/log.md).

    Args:
        model: in training mode.
        batch: on the model's device.
        bank: (R, D) last content of every item; None where the item is its id.
        config: loss settings.
        modality_dropout: chance that a present modality is masked in the second loss.
        repeats_forbidden: leave items met before out of the candidates.
        gather: puts the items of all ranks together; None for a process alone.

    Returns:
        The mean losses, and what was encoded.
    """
    rows, counts = None, model.counts
    if batch.candidates is not None:  # what a step costs must not grow with R then
        batch, rows = number_needed(batch, counts.shape[0])
        counts = counts.index_select(0, rows)
        bank = None if bank is None else bank.index_select(0, rows)
    content, as_new, fresh = bank, None, None
    if bank is not None and batch.media:
        fresh = fresh_content(
            model, batch, config, modality_dropout=modality_dropout, gather=gather
        )
        clean = scale_gradient(fresh.clean, fresh.weight * config.content_gradient)
        content = bank.index_copy(0, batch.fresh, clean.to(bank.dtype))
        as_new = scale_gradient(fresh.noisy, fresh.weight) if config.cold_weight else None
    items, bias = model.embeddings(content, rows), model.bias(counts)
    tables = [(items, bias)]
    if as_new is not None:
        # the others only stand beside them here: what they are is learnt in the first loss
        table = items.detach().index_copy(0, batch.fresh, as_new.to(items.dtype))
        tables.append((table, bias.detach().index_fill(0, batch.fresh, 0.0)))
    one_modality = None if fresh is None else fresh.one_modality
    if fresh is not None and one_modality is not None and config.modality_weight:
        heads = head_tables(one_modality, batch.fresh, fresh.weight, items, bias)
        tables += heads.values()

    # a model of ids knows no other likeness than that of what is met together
    contents = items if content is None else content

    def losses_of(part: Batch) -> tuple[Tensor, ...]:
        return _losses_of_histories(
            model, part, items, tables, contents, config, repeats_forbidden=repeats_forbidden
        )

    parts = split_histories(batch, config.micro_batches)
    if len(parts) == 1:
        sums: Sequence[Tensor] = losses_of(batch)
    else:  # each part's activations are made anew in its backward pass, and never all at once
        found = [checkpoint(losses_of, part, use_reentrant=False) for part in parts]
        sums = [torch.stack(terms).sum() for terms in zip(*found, strict=True)]
    loss, *others = sums
    variety_loss = others.pop() if config.variety_weight else None
    shown_loss = others.pop() if config.shown_weight else None
    of_heads = dict(zip(model.heads, others[len(others) - len(model.heads) :], strict=True))
    others = others[: len(others) - len(model.heads)]
    cold_loss = others.pop(0) if as_new is not None else None
    alignment, query = None, None
    if one_modality is not None and config.alignment_weight:
        alignment = align(model, one_modality)
    if fresh is not None and batch.queries is not None:
        asked = [fresh.clean] if fresh.unlabelled is None else [fresh.clean, fresh.unlabelled]
        with gathering(gather, batch.num_items):
            query = match_queries(model, batch.queries, torch.cat(asked), gather)
    labels: dict[str, Tensor] = {}
    if fresh is not None:
        labels = label_losses(model, fresh.noisy, fresh.weight, batch.item_labels)
    return Losses(
        loss=loss,
        cold_loss=cold_loss,
        num_targets=int(batch.counted.sum()),
        content=None if fresh is None else fresh.clean.detach().float(),
        alignment=alignment,
        modality_loss=torch.stack(others).mean() if others else None,
        query_loss=query,
        heads=of_heads,
        labels=labels,
        shown_loss=shown_loss,
        variety_loss=variety_loss,
    )


def _losses_of_histories(
    model: RecommenderModel,
    batch: Batch,
    items: Tensor,
    tables: Sequence[tuple[Tensor, Tensor]],
    contents: Tensor,
    config: TrainingConfig,
    *,
    repeats_forbidden: bool,
) -> tuple[Tensor, ...]:
    """The share of some histories in the mean loss over each table, then in that of each head.

    Args:
        model: in training mode.
        batch: the histories.
        items: (R, D) embeddings that histories are read by.
        tables: (R, D) what positions are compared with, and (R,) its biases.
        contents: (R, D) unit vectors that say which items are alike.
        config: loss settings.
        repeats_forbidden: leave items met before out of the candidates.
    """
    counted = None if bool(batch.counted.all()) else batch.counted
    both_ways = model.history.both_ways
    if both_ways:
        states = _states_of_hidden(model, batch, items)
    else:
        shown = model.shown(items, batch.inputs)
        states = model.users(shown, batch.offsets, signals=batch.signals)
    excluded = None
    if repeats_forbidden and config.mask_seen != "none":
        excluded = met_before(
            batch.inputs,
            batch.offsets,
            # what is met later is shown there, so it is no candidate either
            everything=both_ways or config.mask_seen == "all",
            counted=counted,
            num_items=None if model.history.start is None else items.shape[0],
        )
    of_heads = head_losses(model, batch, states, items)
    met = states
    targets, weights = batch.targets, batch.weights
    if counted is not None:
        states, targets = states[counted], targets[counted]
        weights = None if weights is None else weights[counted]
    queries = states / model.temperature
    # a mean over all ranks' positions, times their number: gradients are averaged over ranks
    if weights is None:
        share = targets.shape[0] * batch.world / max(batch.num_counted, 1)
    else:
        share = float(weights.sum()) * batch.world / max(batch.total_weight, 1e-12)
    softmax: Callable[..., Tensor] = catalogue_softmax
    if batch.candidates is not None:
        assert batch.log_inclusion is not None
        softmax = partial(
            sampled_softmax, candidates=batch.candidates, log_inclusion=batch.log_inclusion
        )
    of_tables = tuple(
        share
        * softmax(
            queries,
            table,
            bias,
            targets,
            weights=weights,
            excluded=excluded,
            label_smoothing=config.label_smoothing,
        )
        for table, bias in tables
    )
    found = (*of_tables, *of_heads)
    if config.shown_weight:
        found = (*found, shown_loss_of(model, batch, met, tables[0]))
    if config.variety_weight:
        of_lists = variety_loss_of(batch, met, tables[0], contents, model.temperature, excluded)
        found = (*found, of_lists)
    return found


def shown_loss_of(
    model: RecommenderModel, batch: Batch, states: Tensor, table: tuple[Tensor, Tensor]
) -> Tensor:
    """The share of some pairs in the mean of -log sigmoid(z_target - z_shown).

    Of a position that counts, its target; of what was shown behind it, each item. Pairs of the
    other positions add nothing to the sum.
    Source: Rendle et al., BPR, arXiv 1205.2618, with what was shown in place of a sample.

    Args:
        model: in training mode.
        batch: with E pairs.
        states: (P, D).
        table: (R, D) embeddings and (R,) biases.
    """
    items, bias = table
    place, shown = batch.shown
    kept = batch.counted[place]
    place, shown = place[kept], shown[kept]
    target = batch.targets[place]
    users = states[place] / model.temperature
    gap = (users * (items[target] - items[shown])).sum(-1) + bias[target] - bias[shown]
    return -F.logsigmoid(gap.float()).sum() * batch.world / max(batch.num_shown, 1)


def head_losses(
    model: RecommenderModel, batch: Batch, states: Tensor, items: Tensor
) -> list[Tensor]:
    """The share of some positions in the mean loss of each head over its labels.

    Cross-entropy of a binary head; squared error in units of the values' variance of one of values.

    Args:
        model: in training mode.
        batch: with labels (P,).
        states: (P, D).
        items: (R, D) embeddings.
    """
    found = []
    for name, head in model.heads.items():
        labels = batch.heads[name]
        known = ~labels.labels.isnan()
        targets = items.index_select(0, batch.targets[known])
        told = head(states[known], targets, labels.offsets[known])
        wanted = labels.labels[known]
        total = labels.total
        if model.head_specs[name].kind == "binary":
            terms = F.binary_cross_entropy_with_logits(told, wanted, reduction="sum")
            if model.head_specs[name].shown:
                place, shown = batch.shown
                told = head(states[place], items[shown], torch.zeros_like(states[place, 0]))
                terms = terms + F.softplus(told).sum()  # all of them are no
                total += batch.num_shown
        else:
            terms = ((told - wanted) / head.spread).square().sum()
        found.append(terms * batch.world / max(total, 1))
    return found


def _states_of_hidden(model: RecommenderModel, batch: Batch, items: Tensor) -> Tensor:
    """(P, D) states of the targets in whole histories, in which those that count are hidden."""
    offsets, targets = batch.offsets, batch.targets
    number = torch.arange(offsets.shape[0], device=offsets.device)
    history = torch.repeat_interleave(offsets[1:] - offsets[:-1])
    # a history is its first input, then its targets
    places = torch.arange(targets.shape[0], device=offsets.device) + history + 1
    events = torch.cat([batch.inputs, targets.new_zeros(number.shape[0] - 1)])
    first = offsets[:-1] + number[:-1]
    events = events.index_copy(0, first, batch.inputs[offsets[:-1]])
    events = events.index_copy(0, places, targets)
    hidden = torch.zeros_like(events, dtype=torch.bool).index_copy(0, places, batch.counted)
    states = model.users(items.index_select(0, events), offsets + number, hidden)
    return states.index_select(0, places)


def number_needed(batch: Batch, num_items: int) -> tuple[Batch, Tensor]:
    """The batch with its rows numbered among those that its losses look at.

    Args:
        batch: with candidates.
        num_items: R.

    Returns:
        The batch, and (n,) ascending rows: the candidates (targets and fresh items are among them)
        and what the histories hold.
    """
    assert batch.candidates is not None
    rows = torch.cat([batch.candidates, batch.inputs, batch.shown[1]]).unique()
    rows = rows[rows < num_items]  # the start of a history stands one past the last

    def place(found: Tensor) -> Tensor:
        return torch.searchsorted(rows, found)

    numbered = replace(
        batch,
        inputs=place(batch.inputs),
        targets=place(batch.targets),
        fresh=place(batch.fresh),
        candidates=place(batch.candidates),
        shown=torch.stack([batch.shown[0], place(batch.shown[1])]),
    )
    return numbered, rows
