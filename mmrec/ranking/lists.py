"""What a ranker learns from: the frozen retriever's own lists at events of the training histories.

    training histories ─► events, drawn ─► Cases ─► retrieval's best K ─┬─► Lists
    what was shown before an event and not met ──────────────────────────┘

A list is what service would have ranked: the K best by what came before the event, seen items left
out. Items that training never met do not compete: none of them is ever met next in its histories,
and a ranker would learn to put them last (`list_loss` shows others as if they were new instead).
It teaches order where it holds the item met next: where retrieval found that, or where it
stands beside what was shown. A list that retrieval missed teaches no order, since no ranker could
mend it in use.

Legend: U lists · K of retrieval · C columns: K, one for the item met, others for what was shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from mmrec.data.labels import LabelSource, describe_heads, not_met
from mmrec.data.ragged import IntArray
from mmrec.data.targets import target_rule
from mmrec.data.thinning import ThinnedSplit
from mmrec.data.user_share import in_share
from mmrec.evaluation.heads import told_windows, window_labels
from mmrec.evaluation.protocol import Cases, Which, cases_of, is_cold_item
from mmrec.evaluation.ranking import Ranking, VectorScorer, rank_cases
from mmrec.loaded import LoadedRun
from mmrec.vectors import ItemVectors, item_vectors, score_vectors, user_vectors

FloatArray = npt.NDArray[np.float32]
# Cases whose candidates are scored at once.
TILE = 4096


@dataclass(frozen=True)
class Frozen:
    """A trained retriever that is asked for lists.

    Attributes:
        loaded: its run.
        vectors: of all N items.
        counts: (N,) training events.
    """

    loaded: LoadedRun
    vectors: ItemVectors
    counts: IntArray

    def retrieve(self, cases: Cases, k: int) -> tuple[Tensor, Ranking]:
        """Users (U, D) as retrieval asks with them, and its best K of each case."""
        model = self.loaded.model
        users = user_vectors(model, self.vectors.embedding, cases.history, cases.told)
        sides = score_vectors(model, users, self.vectors)
        candidates = torch.from_numpy(cases.candidates).to(users.device)
        scorer = VectorScorer(sides[0], sides[1][candidates])
        return users, rank_cases(scorer, cases, top_k=k, device=users.device)

    def scores(self, users: Tensor, items: IntArray) -> Tensor:
        """(U, C) scores in units of cosine of items (U, C); -1 is scored as the first item."""
        sides = score_vectors(self.loaded.model, users, self.vectors)
        rows = torch.from_numpy(np.maximum(items, 0)).to(users.device)
        tiles = zip(sides[0].split(TILE), rows.split(TILE), strict=True)
        return torch.cat([(sides[1][own] @ each[:, :, None]).squeeze(2) for each, own in tiles])


def freeze(loaded: LoadedRun) -> Frozen:
    """The retriever of a finished run."""
    vectors = item_vectors(
        loaded.model,
        loaded.content,
        loaded.item_index_of,
        num_items=len(loaded.item_ids),
        has=loaded.has,
    )
    counts = np.zeros(len(loaded.item_ids), np.int64)
    counts[loaded.item_index_of] = loaded.model.counts.cpu().numpy().astype(np.int64)
    return Frozen(loaded, vectors, counts)


@dataclass(frozen=True)
class Example:
    """An event that a list is made for.

    Attributes:
        user_index: whose.
        position: of the event in his complete history.
        item: item_index that he met.
        is_target: whether lists are to hold it; heads learn from other events too.
        shown: item_index of what was shown before the event and not met.
        labels: of the event by head, and what is expected beside the head's base.
    """

    user_index: int
    position: int
    item: int
    is_target: bool
    shown: IntArray
    labels: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Lists:
    """Lists with what is known of them.

    Attributes:
        cases: U histories.
        users: (U, D) that retrieval asks with.
        items: (U, C) item_index, -1 for none.
        scores: (U, C) of retrieval.
        listed: (U, C) bool, candidates that compete for the place of the item met.
        target: (U,) column of that item, -1 where the list teaches no order.
        labels: (U, C) by head, NaN where there is none.
        expected: (U, C) by head, what is expected beside its base.
        found: share of the targets that are among the best K.
    """

    cases: Cases
    users: Tensor
    items: IntArray
    scores: Tensor
    listed: npt.NDArray[np.bool_]
    target: IntArray
    labels: dict[str, FloatArray]
    expected: dict[str, FloatArray]
    found: float

    def __len__(self) -> int:
        return len(self.target)

    def useful(self) -> IntArray:
        """Rows of the lists that teach something."""
        labelled = [~np.isnan(each).all(1) for each in self.labels.values()]
        return np.flatnonzero(np.stack([self.target >= 0, *labelled]).any(0))


def training_examples(loaded: LoadedRun, *, most: int, seed: int) -> list[Example]:
    """Events of training histories, about as many of each user, by user and position.

    The first event of a history is none: nothing came before it. Where the model has no heads, only
    events that may be targets are drawn.

    Args:
        loaded: a finished run.
        most: of them in all.
        seed: of the draw.
    """
    data, split, config = loaded.data, loaded.split, loaded.config
    assert data is not None and split is not None
    rule, is_cold, labels = target_rule(data), is_cold_item(split), _label_source(loaded)
    rows = np.flatnonzero(in_share(data.user_ids, config.data.user_share)[split.train.user_index])
    random = np.random.default_rng((seed, 0))
    if len(rows) > most:
        rows = np.sort(random.choice(rows, most, replace=False))
    each_user = max(1, most // max(len(rows), 1))
    full_row = {int(user): row for row, user in enumerate(split.full.user_index)}
    found = []
    for row in rows[np.argsort(split.train.user_index[rows], kind="stable")].tolist():
        history = split.train.read(row)
        n = len(history.item_index)
        whole = split.full.read(full_row[history.user_index])
        usable = ~is_cold[whole.item_index]
        if isinstance(split, ThinnedSplit):
            usable &= split.knows(whole)
        positions = np.flatnonzero(usable)[:n]  # training keeps the first of them
        is_target = rule.allowed(history.event, history.value, 0, n)
        places = np.arange(1, n)
        if not labels.specs:
            places = places[is_target[1:]]
        if len(places) > each_user:
            own = np.random.default_rng((seed, 1, history.user_index))
            places = np.sort(own.choice(places, each_user, replace=False))
        told = labels.of_stretch(history, 0, n)
        shown = history.shown_items[not_met(history)]
        before = history.shown_before[not_met(history)]
        found += [
            Example(
                history.user_index,
                int(positions[place]),
                int(history.item_index[place]),
                bool(is_target[place]),
                shown[before == place],
                {name: (float(own[0][place]), float(own[1][place])) for name, own in told.items()},
            )
            for place in places.tolist()
        ]
    return found


def _label_source(loaded: LoadedRun) -> LabelSource:
    """Labels of training events, their own values left out of the means of items."""
    assert loaded.data is not None and loaded.split is not None
    row_of = np.full(len(loaded.item_ids), -1, np.int64)
    row_of[loaded.item_index_of] = np.arange(len(loaded.item_index_of))
    wanted = loaded.config.model.heads
    means = describe_heads(
        wanted, loaded.data, loaded.split.train, row_of, num_rows=len(loaded.item_index_of)
    )[1]
    return LabelSource(loaded.model.head_specs, means, row_of)


def held_out_examples(loaded: LoadedRun, which: Which) -> list[Example]:
    """The events that heads are judged by, see `mmrec.evaluation.heads`; none without heads."""
    if not loaded.model.head_specs:
        return []
    assert loaded.split is not None
    windows = told_windows(loaded.split, which)
    if not windows:
        return []
    parts = {}
    for name, spec in loaded.model.head_specs.items():
        of_items = np.zeros(len(loaded.item_ids), np.float32)
        if name in loaded.model.value_offsets:
            offsets = loaded.model.value_offsets[name].cpu().numpy()
            of_items[loaded.item_index_of] = offsets
        parts[name] = window_labels(spec, windows, of_items)
    found, first = [], 0
    for window in windows:
        events, shown = window.places[: window.num_events], window.places[window.num_events :]
        for number, place in enumerate(events.tolist()):
            own = first + number
            found.append(
                Example(
                    window.history.user_index,
                    place,
                    int(window.items[number]),
                    False,
                    window.items[window.num_events :][shown == place],
                    {n: (float(told[0][own]), float(told[1][own])) for n, told in parts.items()},
                )
            )
        first += len(window.places)
    return found


def lists_of(frozen: Frozen, examples: Sequence[Example], *, k: int, shown: int) -> Lists:
    """Asks the retriever for the list behind each example.

    Args:
        frozen: the retriever.
        examples: by user and position, each once.
        k: K.
        shown: most items of an example that were shown.
    """
    loaded = frozen.loaded
    assert loaded.data is not None and loaded.split is not None
    rows = [(each.user_index, each.item, each.position, "warm") for each in examples]
    names = ["user_index", "item_index", "position", "slice"]
    table = pl.DataFrame(rows, names, orient="row")
    cases = cases_of(loaded.data, loaded.split, table, "validation")
    users, ranking = frozen.retrieve(cases, k)
    specs = loaded.model.head_specs
    most = min(shown, max((len(each.shown) for each in examples), default=0))
    extra = 1 + most if most or specs else 0
    items = np.full((len(examples), k + extra), -1, np.int64)
    items[:, :k] = ranking.top_items
    listed = (items >= 0) & (frozen.counts[items] > 0)
    target = np.full(len(examples), -1, np.int64)
    labels = {name: np.full(items.shape, np.nan, np.float32) for name in specs}
    expected = {name: np.zeros(items.shape, np.float32) for name in specs}
    usable = np.ones(len(frozen.counts), np.bool_)
    if loaded.content is None:
        usable = frozen.counts > 0
    num_targets, num_found = 0, 0
    for row, each in enumerate(examples):
        own = items[row]
        column = _place(own, each.item, k)
        offered = each.shown[usable[each.shown]][:most] if extra else each.shown[:0]
        columns = [_place(own, int(item), k + 1 + i) for i, item in enumerate(offered)]
        if extra:
            own[column] = each.item
            own[columns] = offered
            listed[row, columns] = frozen.counts[offered] > 0
        if each.is_target:
            num_targets += 1
            num_found += column < k
            if column < k or len(offered):
                target[row] = column
                listed[row, column] = True
        for name, (label, beside) in each.labels.items():
            labels[name][row, column], expected[name][row, column] = label, beside
            if specs[name].shown:
                labels[name][row, columns] = 0.0
    top = torch.from_numpy(ranking.top_scores).to(users.device)
    return Lists(
        cases,
        users,
        items,
        torch.cat([top, frozen.scores(users, items[:, k:])], dim=1) if extra else top,
        listed,
        target,
        labels,
        expected,
        num_found / max(num_targets, 1),
    )


def _place(own: IntArray, item: int, otherwise: int) -> int:
    """Column of an item in a list, or another."""
    found = np.flatnonzero(own == item)
    return int(found[0]) if len(found) else otherwise
