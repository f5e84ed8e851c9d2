"""Labels of items: values of an attribute that the model does not read, but tells from the rest.

    an attribute of the items of training, or
    a quantile of their training events ─► LabelSet: the labels, how common each is
    rows of the items of a step ─► (M, K) which labels each has

Legend: M items of a step · R items in training · K labels · n items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fusion.labels import LabelKind
from mmrec.data.ragged import IntArray, Ragged
from mmrec.errors import ConfigError

if TYPE_CHECKING:
    from data_prep.shards import PreparedData
    from mmrec.config import Config

MAX_LABELS = 256
OTHER = -1  # code of a label that is not told
COLD_HOT = ("cold", "hot")  # the positive class is 1


@dataclass(frozen=True)
class LabelSet:
    """What a head of labels tells.

    Attributes:
        attribute: column of the catalogue's items; None for labels of popularity.
        kind: `category`, an item has one label; `set`, any number of them.
        labels: K, the commonest among the items of training first.
        rates: (K,) share of the items with a label that have this one; never 0 or 1.
        popularity: share that `popularity_labels` were made with.
    """

    attribute: str | None
    kind: LabelKind
    labels: tuple[str, ...]
    rates: tuple[float, ...]
    popularity: float | None = None

    @property
    def base(self) -> Tensor:
        """(K,) logits of the rates."""
        rates = torch.tensor(self.rates)
        return rates.log() if self.kind == "category" else rates.logit()

    def members(self, attributes: Mapping[str, Any]) -> list[str]:
        """The labels of an item, told or not, each once; none where nothing is known."""
        value = None if self.attribute is None else attributes.get(self.attribute)
        if value is None:
            return []
        return list(dict.fromkeys(map(str, [value] if self.kind == "category" else value)))

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each label."""
        return {label: place for place, label in enumerate(self.labels)}

    def codes(self, attributes: Mapping[str, Any]) -> list[int]:
        """Places of an item's labels among those that are told, OTHER for the rest."""
        return [self.places.get(label, OTHER) for label in self.members(attributes)]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LabelSet:
        """The set in a checkpoint's state."""
        return cls(
            document["attribute"],
            document["kind"],
            tuple(document["labels"]),
            tuple(document["rates"]),
            document.get("popularity"),
        )


def label_sets_of(document: Mapping[str, Any] | None) -> dict[str, LabelSet]:
    """The sets in a checkpoint's state; none of a run that tells no labels."""
    return {name: LabelSet.from_document(each) for name, each in (document or {}).items()}


class ItemLabels:
    """The labels of the items of training, by their rows.

    Args:
        sets: by name.
        codes: of each, R rows of places among its labels; an item without a label has none.
    """

    def __init__(self, sets: Mapping[str, LabelSet], codes: Mapping[str, Ragged]) -> None:
        self.sets, self.codes = dict(sets), dict(codes)

    def of(self, rows: IntArray) -> dict[str, Tensor]:
        """(M, K) of each set, 1 and 0; NaN throughout for an item that is no example.

        An item without a label says nothing, nor does one of a category that is not told. An item
        of a set that has other labels alone is an example of no for all that are told.
        """
        found = {}
        for name, each in self.sets.items():
            own = self.codes[name].take(rows)
            row, code = torch.from_numpy(own.row_of_value), torch.from_numpy(own.values)
            labels = torch.full((len(rows), len(each.labels)), torch.nan)
            told = code != OTHER
            labels[row[told] if each.kind == "category" else row] = 0.0
            labels[row[told], code[told]] = 1.0
            found[name] = labels
        return found


def describe_labels(
    config: Config, data: PreparedData, item_index_of: IntArray, num_events: IntArray
) -> ItemLabels:
    """What the items of training teach of labels; what others have is not looked at.

    Args:
        config: complete settings.
        data: the prepared folder.
        item_index_of: (R,) item_index of each item of training.
        num_events: (R,) their training events.

    Raises:
        ConfigError: an attribute is not the catalogue's, is no label, or is read by the model; a
            label is no item's.
    """
    sets: dict[str, LabelSet] = {}
    codes: dict[str, Ragged] = {}
    if not config.model.labels:
        return ItemLabels(sets, codes)
    if config.model.item == "id":
        raise ConfigError(
            f"model.labels names {', '.join(config.model.labels)}, but model.item is 'id': labels "
            "are told from media; set model.item=both, or drop them"
        )
    records = [data.items.record(int(row)).get("attributes", {}) for row in item_index_of]
    for name, wanted in config.model.labels.items():
        if wanted.popularity is not None:
            sets[name], codes[name] = popularity_labels(name, wanted.popularity, num_events)
            continue
        attribute = wanted.attribute or name
        bare = LabelSet(attribute, _kind(config, data, name, attribute), (), ())
        having = [members for record in records if (members := bare.members(record))]
        counts = Counter(label for members in having for label in members)
        stray = [label for label in wanted.labels if label not in counts]
        if stray:
            raise ConfigError(
                f"model.labels.{name}.labels names '{stray[0]}', which no item of training has; "
                f"attribute '{attribute}' has {_some(sorted(counts))}"
            )
        if len(counts) < 2:
            raise ConfigError(
                f"model.labels.{name}: {len(having)} items of training have a value of attribute "
                f"'{attribute}', {len(counts)} in all; labels are 2 at least"
            )
        chosen = set(wanted.labels) or counts
        ranked = sorted(chosen, key=lambda label: (-counts[label], label))
        labels = tuple(ranked if wanted.labels else ranked[:MAX_LABELS])
        rates = tuple((counts[label] + 0.5) / (len(having) + 1) for label in labels)
        sets[name] = LabelSet(attribute, bare.kind, labels, rates)
        codes[name] = Ragged.from_rows(sets[name].codes(record) for record in records)
    return ItemLabels(sets, codes)


def hot(counts: IntArray, share: float, among: IntArray) -> npt.NDArray[np.bool_]:
    """Which items have more events than a share of some items have at most.

    Args:
        counts: (n,) events.
        share: of the others, 0 .. 1.
        among: (m,) events of the others; at most 1 - share of them are hot themselves.

    Returns:
        (n,) bool.
    """
    found: npt.NDArray[np.bool_] = counts > np.quantile(among, share, method="inverted_cdf")
    return found


def popularity_labels(name: str, share: float, counts: IntArray) -> tuple[LabelSet, Ragged]:
    """The labels of the items of training, from their training events alone.

    Args:
        name: of the set.
        share: `model.labels.NAME.popularity`.
        counts: (R,) training events.

    Returns:
        The set, and R rows of one code: 1 for hot.

    Raises:
        ConfigError: no item is hot.
    """
    codes = hot(counts, share, counts).astype(np.int64)
    if not codes.any():
        raise ConfigError(
            f"model.labels.{name}.popularity is {share:g}, but no item of training has more events "
            f"than {share:.0%} of them have at most ({int(counts.max())}): take a smaller share"
        )
    rate = float((codes.sum() + 0.5) / (len(codes) + 1))
    labels = LabelSet(None, "category", COLD_HOT, (1 - rate, rate), popularity=share)
    return labels, Ragged(codes, np.arange(len(codes) + 1, dtype=np.int64))


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:8])
    return f"{shown} and {len(labels) - 8:,} more" if len(labels) > 8 else shown


def _kind(config: Config, data: PreparedData, name: str, attribute: str) -> LabelKind:
    """Type of the attribute behind a set of labels."""
    items = data.catalogue.items
    usable = [each for each, spec in items.attributes.items() if spec.type != "number"]
    spec = items.attributes.get(attribute)
    if spec is None or spec.type == "number":
        what = "is a number" if spec is not None else "is no attribute of the catalogue's items"
        raise ConfigError(
            f"model.labels.{name}: '{attribute}' {what}; labels are a category or a set: "
            f"{', '.join(usable) or 'it has none'} (model.labels.{name}.attribute)"
        )
    reads = config.encoders.get("attributes")
    if reads is not None and reads.options.get(attribute, True) is not False:
        raise ConfigError(
            f"model.labels.{name}: encoders.attributes reads '{attribute}', which would be told "
            f"from itself; set encoders.attributes.options.{attribute}=false"
        )
    if "text" in config.encoders and attribute in items.text:
        raise ConfigError(
            f"model.labels.{name}: encoders.text reads '{attribute}', which would be told from "
            "itself; take the column out of items.text of the catalogue"
        )
    return spec.type
