"""States at the cut of media that no cache holds, exactly as one would hold them."""

from __future__ import annotations

from typing import Any

import torch

from encoders.encoder import Inputs
from encoders.tokens import Tokens
from mmrec.data.cache import StateDtype, round_states


@torch.no_grad()
def live_states(encoder: Any, inputs: Inputs, dtype: StateDtype) -> Tokens:
    """States of M items at an encoder's cut: computed in fp32, rounded as the cache rounds them.

    Args:
        encoder: cut, so that nothing below has dropout in training either.
        inputs: what its transform's `collate` returns, on the encoder's device.
        dtype: of the run's cached states.
    """
    with torch.autocast(inputs["present"].device.type, enabled=False):
        return round_states(encoder.below(inputs), dtype)
