"""Exploration: now and then a place of a list shows one of the next candidates.

Each place is explored with probability epsilon, by itself; what it then shows is drawn uniformly
from the next N items, no item twice. So whatever is shown has a known probability of standing
where it does, from which the worth of another model's lists can be told without bias.

Legend: K list length · N candidates behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrec.retrieval.lists import Recommendation


def explore(
    ranked: Sequence[Recommendation], k: int, epsilon: float, random: np.random.Generator
) -> tuple[list[Recommendation], list[float]]:
    """A list some of whose places are explored, and the propensity of what stands at each.

    Args:
        ranked: K + N items, best first; fewer where the catalogue has no more.
        k: K.
        epsilon: probability, 0 to 1, with which a place is explored.
        random: of the draws.

    Returns:
        At most K items with their ranks, and of each P(this item at this place): with
        M = max(N, K) it is epsilon / M of a candidate, 1 - epsilon * N / M of the item that ranks
        there. Where N < K some places draw none of the N and stay as they are.
    """
    best, behind = ranked[:k], ranked[k:]
    among = max(len(behind), len(best), 1)
    drawn = random.permutation(among)[: len(best)]
    explored = random.random(len(best)) < epsilon
    stays = 1.0 - epsilon * len(behind) / among
    shown, propensities = list[Recommendation](), list[float]()
    for place, own in enumerate(best):
        other = int(drawn[place])
        if explored[place] and other < len(behind):
            shown.append(replace(behind[other], rank=own.rank))
            propensities.append(epsilon / among)
        else:
            shown.append(own)
            propensities.append(stays)
    return shown, propensities
