"""A share of the users, the same in every run and on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_prep.shards import PreparedData, Split
from mmrec.data.histories import ChosenHistories, HistorySource
from mmrec.errors import ConfigError


def in_share(user_ids: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """(U,) True for the users of a share; the same users in every run and on every machine."""
    digests = [hashlib.sha256(f"user_share:{user_id}".encode()).digest() for user_id in user_ids]
    places = np.array([int.from_bytes(each[:6], "big") for each in digests], np.int64)
    return places < share * 2**48


def histories_of_share(data: PreparedData, split: Split, share: float) -> HistorySource:
    """Histories of the share of users.

    Raises:
        ConfigError: no user with a training history falls in it.
    """
    if share == 1:
        return split.train
    rows = np.flatnonzero(in_share(data.user_ids, share)[split.train.user_index])
    if not len(rows):
        raise ConfigError(
            f"data.user_share is {share:g}: none of the {len(split.train)} users with a training "
            "history falls in it; give a larger share"
        )
    return ChosenHistories(split.train, rows.astype(np.int64))
