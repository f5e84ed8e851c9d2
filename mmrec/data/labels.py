"""Labels of the heads: what users did with items, and what is expected of it by means alone.

    training histories ─► LabelSpec: rates, mean values, items' means
    a history ─► of each event: was it one of these types, how far is its value from the means

A value is expected to be the mean of all, plus how far the item's values lie from it, plus how far
the user's so far lie from both; few values are drawn to 0. It is the baseline that a head of values
starts from.

Legend: n events · R items in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mmrec.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.shards import History, PreparedData
    from mmrec.config import HeadConfig
    from mmrec.data.histories import HistorySource, IntArray

Floats = npt.NDArray[np.float32]
ITEM_PRIOR, USER_PRIOR = 10.0, 5.0  # values that an item, or a user, is taken to have had at 0


@dataclass(frozen=True)
class HeadSpec:
    """What a head tells.

    Attributes:
        kind: `binary` or `value`.
        positive: codes of the types that count as yes; of a value none.
        among: codes of the types that are examples; empty: all.
        base: logit of the share of yes, or mean value.
        spread: 1, or the standard deviation of values.
        shown: whether items that were shown and not met are examples of no.
    """

    kind: str
    positive: tuple[int, ...]
    among: tuple[int, ...]
    base: float
    spread: float
    shown: bool = False

    def labels(self, history: History) -> Floats:
        """(n,) 1 and 0, or values; NaN for events that are no example."""
        n = len(history.item_index)
        event = np.full(n, -1) if history.event is None else history.event
        if self.kind == "value":
            found = np.full(n, np.nan) if history.value is None else history.value
        else:
            found = np.where(event < 0, np.nan, np.isin(event, self.positive))
        if self.among:
            found = np.where(np.isin(event, self.among), found, np.nan)
        return np.asarray(found, np.float32)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> HeadSpec:
        """The spec in a checkpoint's state."""
        lists = {name: tuple(document[name]) for name in ("positive", "among")}
        return cls(document["kind"], lists["positive"], lists["among"], document["base"],
                   document["spread"], document["shown"])  # fmt: skip


def not_met(history: History) -> npt.NDArray[np.bool_]:
    """(m,) of the items shown: True where the user met none of them afterwards."""
    last: dict[int, int] = {}
    for place, item in enumerate(history.item_index.tolist()):
        last[item] = place
    shown = zip(history.shown_items.tolist(), history.shown_before.tolist(), strict=True)
    return np.array([last.get(item, -1) < before for item, before in shown], np.bool_)


def heads_of(document: Mapping[str, Any] | None) -> dict[str, HeadSpec]:
    """The specs in a checkpoint's state; none of a run that has no heads."""
    return {name: HeadSpec.from_document(each) for name, each in (document or {}).items()}


@dataclass(frozen=True)
class HeadLabels:
    """Labels of the positions of a batch.

    Attributes:
        labels: (P,), NaN where there is none.
        offsets: (P,) what is expected beside the base.
        total: labels of the whole batch, over all ranks.
    """

    labels: Tensor
    offsets: Tensor
    total: int

    def to(self, device: torch.device) -> HeadLabels:
        """The same on a device."""
        return HeadLabels(self.labels.to(device), self.offsets.to(device), self.total)

    def part(self, own: slice) -> HeadLabels:
        """Of some positions."""
        return HeadLabels(self.labels[own], self.offsets[own], self.total)


@dataclass(frozen=True)
class ItemMeans:
    """How far the values of each item lie from the mean of all.

    Attributes:
        sums: (R,) of the distances.
        counts: (R,) of the values.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]

    @property
    def offsets(self) -> Floats:
        """(R,) as they are in use."""
        return (self.sums / (self.counts + ITEM_PRIOR)).astype(np.float32)

    def without_own(self, rows: IntArray, distances: npt.NDArray[Any]) -> Floats:
        """(n,) of the items of events, as if each event's own value had not been told.

        In use no event is in its item's mean, and a head that learnt beside means that hold the
        answer would trust them too far, most of all those of few values.

        Args:
            rows: (n,) of the items.
            distances: (n,) of the events' values from the mean of all, NaN where there is none.
        """
        known = ~np.isnan(distances)
        sums = self.sums[rows] - np.where(known, distances, 0.0)
        return (sums / (self.counts[rows] - known + ITEM_PRIOR)).astype(np.float32)


def describe_heads(
    wanted: Mapping[str, HeadConfig],
    data: PreparedData,
    histories: HistorySource,
    row_of: IntArray,
    *,
    num_rows: int,
) -> tuple[dict[str, HeadSpec], dict[str, ItemMeans]]:
    """What heads are told by the training histories.

    Args:
        wanted: their settings by name.
        data: the prepared folder.
        histories: of training.
        row_of: row of each item of the catalogue, -1 for none.
        num_rows: R.

    Returns:
        Specs, and of heads of values how far each item's values lie from the mean of all.

    Raises:
        ConfigError: the log lacks what a head is to tell, or all of its examples are alike.
    """
    if not wanted:
        return {}, {}
    types = list(data.manifest.get("event_types") or [])
    specs: dict[str, HeadSpec] = {}
    offsets: dict[str, ItemMeans] = {}
    for name, head in wanted.items():
        for field in ("positive", "among"):
            for each in getattr(head, field):
                if each not in types:
                    raise ConfigError(
                        f"model.heads.{name}.{field} names '{each}'; the log's event types are "
                        f"{', '.join(types) or 'none'}"
                    )
        codes = {
            field: tuple(types.index(each) for each in getattr(head, field))
            for field in ("positive", "among")
        }
        spec = HeadSpec(head.kind, codes["positive"], codes["among"], 0.0, 1.0)
        total, squares, count, num_shown = 0.0, 0.0, 0, 0
        reads_shown = head.kind == "binary" and head.shown
        sums, counts = np.zeros(num_rows), np.zeros(num_rows)
        for place in range(len(histories.lengths)):
            history = histories.read(place)
            labels = spec.labels(history).astype(np.float64)
            known = ~np.isnan(labels)
            rows = row_of[history.item_index[known]]
            np.add.at(sums, rows, labels[known])
            np.add.at(counts, rows, 1)
            total += float(labels[known].sum())
            squares += float((labels[known] ** 2).sum())
            count += int(known.sum())
            if reads_shown and len(history.shown_items):
                num_shown += int(not_met(history).sum())
        count += num_shown
        mean = total / max(count, 1)
        spread = math.sqrt(max(squares / max(count, 1) - mean**2, 0.0))
        if spread == 0.0:
            raise ConfigError(
                f"model.heads.{name}: {count} events of training are examples, and all say the "
                "same; check its settings and the catalogue's columns"
            )
        if head.kind == "value":
            specs[name] = HeadSpec(head.kind, (), codes["among"], mean, spread)
            offsets[name] = ItemMeans(sums - mean * counts, counts)
        else:
            logit = math.log(mean / (1 - mean))
            specs[name] = HeadSpec(
                head.kind, codes["positive"], codes["among"], logit, 1.0, num_shown > 0
            )
    return specs, offsets


def expected(spec: HeadSpec, labels: Floats, item_offsets: Floats) -> Floats:
    """(n,) what each value of a history is expected to be, beside the mean of all.

    Args:
        spec: of the head.
        labels: (n,) its values, NaN where there is none; only earlier ones count.
        item_offsets: (n,) of the items, 0 for those that training never met.
    """
    if spec.kind != "value":
        return np.zeros(len(labels), np.float32)
    return (item_offsets + user_offsets(spec, labels, item_offsets)[:-1]).astype(np.float32)


def user_offsets(spec: HeadSpec, labels: Floats, item_offsets: Floats) -> Floats:
    """(n + 1,) how far a user's values lie from what was expected, before each event and in all."""
    residual = labels - spec.base - item_offsets
    known = ~np.isnan(residual)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, residual, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    return (sums / (counts + USER_PRIOR)).astype(np.float32)


class LabelSource:
    """Labels of stretches of histories, for the positions of a batch.

    Args:
        specs: of the heads.
        means: of items, of heads of values.
        row_of: row of each item of the catalogue.
    """

    def __init__(
        self,
        specs: Mapping[str, HeadSpec],
        means: Mapping[str, ItemMeans],
        row_of: IntArray,
    ) -> None:
        self.specs, self.means, self.row_of = dict(specs), dict(means), row_of

    def of_stretch(self, history: History, first: int, stop: int) -> dict[str, tuple[Any, Any]]:
        """Labels and offsets of the events first..stop, which are targets."""
        found = {}
        for name, spec in self.specs.items():
            labels = spec.labels(history)
            offsets = np.zeros(len(labels), np.float32)
            if name in self.means:
                rows = self.row_of[history.item_index]
                of_items = self.means[name].without_own(rows, labels - spec.base)
                offsets = expected(spec, labels, of_items)
            found[name] = (labels[first:stop], offsets[first:stop])
        return found

    def join(
        self, parts: Sequence[Mapping[str, tuple[Any, Any]]], totals: Mapping[str, int]
    ) -> dict[str, HeadLabels]:
        """Labels of a rank's stretches as tensors."""
        return {
            name: HeadLabels(
                torch.from_numpy(np.concatenate([each[name][0] for each in parts])),
                torch.from_numpy(np.concatenate([each[name][1] for each in parts])),
                totals[name],
            )
            for name in self.specs
        }

    def count(self, parts: Sequence[Mapping[str, tuple[Any, Any]]]) -> dict[str, int]:
        """Labels of some stretches."""
        return {
            name: sum(int((~np.isnan(each[name][0])).sum()) for each in parts)
            for name in self.specs
        }

    def nothing(self, n: int) -> dict[str, tuple[Any, Any]]:
        """N positions without labels."""
        nan = np.full(n, np.nan, np.float32)
        return {name: (nan, np.zeros(n, np.float32)) for name in self.specs}
