"""What is known of the items and the users of a catalogue, and of one user who is asked about.

Legend: N items of the catalogue · C candidates · D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from data_prep.shards import History
from mmrec.data.ragged import IntArray
from mmrec.data.told import EventColumns
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.available import Available

BoolArray = npt.NDArray[np.bool_]


class Users(Protocol):
    """The users whose histories are stored."""

    @property
    def user_ids(self) -> Sequence[str]:
        """By user_index."""

    def index_of(self, user_id: str) -> int | None:
        """Row of an id, None where it is not known."""

    def complete(self, user_index: int) -> History:
        """Every event of a user, oldest first; of a bundle, what its model reads of them."""

    def attributes(self, user_index: int) -> Mapping[str, Any]:
        """What is known of a user; of a bundle, what its model reads."""


@dataclass(frozen=True)
class Items:
    """What is known of the N items beside their vectors.

    Attributes:
        item_ids: by item_index.
        titles: first text of each item or None; a sequence that may read it when asked.
        has: (N,) bool by modality that the model encodes, True = the item has it.
        deleted: (N,) bool, True = withdrawn.
        is_candidate: (N,) bool, True = may be recommended: it is in the log and not withdrawn.
        held_out: (N,) bool, True = a cold item of the split: no input of a stored user's vector.
        read_available: reads when each may be listed; None: always.
        read_attributes: reads the catalogue's attributes of each; None: it has none.
        read_texts: opens all texts of each, a line a field; None: titles are all there is.
    """

    item_ids: Sequence[str]
    titles: Sequence[str | None]
    has: Mapping[str, BoolArray]
    deleted: BoolArray
    is_candidate: BoolArray
    held_out: BoolArray
    read_available: Callable[[], Available] | None = None
    read_attributes: Callable[[], ItemAttributes] | None = None
    read_texts: Callable[[], Sequence[str | None]] | None = None

    @cached_property
    def attributes(self) -> ItemAttributes:
        """Attributes of each item; read when they are first asked for.

        Raises:
            UserError: a bundle was written before bundles held them.
        """
        if self.read_attributes is None:
            return ItemAttributes(len(self.item_ids), {}, {})
        return self.read_attributes()

    @cached_property
    def texts(self) -> Sequence[str | None]:
        """All texts of each item in one; its title where no more is known."""
        return self.titles if self.read_texts is None else self.read_texts()

    @cached_property
    def available(self) -> Available | None:
        """When each item may be listed; read when it is first asked for. None: always."""
        return None if self.read_available is None else self.read_available()

    @cached_property
    def rows(self) -> dict[str, int]:
        """item_index by id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def candidates(self) -> IntArray:
        """(C,) item_index of the candidates, ascending."""
        return np.flatnonzero(self.is_candidate).astype(np.int64)

    @cached_property
    def any_medium(self) -> BoolArray:
        """(N,) bool: the model encodes at least one medium of the item."""
        found = np.zeros(len(self.item_ids), np.bool_)
        for has in self.has.values():
            found |= has
        return found

    def modalities(self, item_index: int) -> list[str]:
        """Modalities that the item's content is made of."""
        return [name for name, has in self.has.items() if has[item_index]]


@dataclass(frozen=True)
class Asked:
    """One user as the model is asked about him.

    Attributes:
        user_id: his id, or the place of a history that was given.
        history: (n,) item_index, the model's input, oldest first; may be empty.
        seen: (s,) item_index that no list may show again where repeats are forbidden.
        events: (n) what is known of each event of the history.
        request: (1) what is known of the question: when and where it is asked.
        attributes: what is known of the user.
        num_unknown: events dropped because their item is not known.
        taste: (D,) unit content of what the user says he likes, None where he says nothing. It is
            read like an item met last, of which nothing else is known.
    """

    user_id: str
    history: IntArray
    seen: IntArray
    events: EventColumns
    request: EventColumns
    attributes: Mapping[str, Any]
    num_unknown: int = 0
    taste: Tensor | None = None
