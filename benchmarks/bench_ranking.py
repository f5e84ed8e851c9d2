"""Ranking: time at the size of ML-1M, memory at a million candidates.

Random unit vectors, one target and a history of seen items a user. Imports, baselines and the
making of the vectors are apart.
"""

from __future__ import annotations

import numpy as np
import torch
from measure import arguments, peak_gb, report, seconds_of

from mmrec.data.ragged import Ragged
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import VectorScorer, rank_cases


def random_cases(num_users: int, num_items: int, num_seen: int) -> Cases:
    """Cases with one target each and `num_seen` seen items, none of which is the target."""
    rng = np.random.default_rng(0)
    target = rng.integers(num_items, size=num_users)
    steps = rng.integers(1, num_items, size=(num_users, num_seen))
    seen = np.sort((target[:, None] + steps) % num_items, axis=1)
    rows = np.arange(num_users + 1)
    history = Ragged(seen.reshape(-1), rows * num_seen)
    return Cases(
        user_index=rows[:-1],
        history=history,
        seen=history,
        targets=Ragged(target, rows),
        slice=["warm"] * num_users,
        candidates=np.arange(num_items),
        candidate_is_cold=np.zeros(num_items, dtype=bool),
        num_items=num_items,
    )


def random_scorer(num_users: int, num_items: int, width: int) -> VectorScorer:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(num_users, width, generator=generator)
    items = torch.randn(num_items, width, generator=generator)
    for vectors in (users, items):
        vectors /= vectors.norm(dim=1, keepdim=True)
    return VectorScorer(users, items)


def million(small: bool) -> None:
    """Memory and time at a million candidates; first, while nothing big has been allocated.

    One round: the peak does not vary, and a round takes minutes.
    """
    shrink = 20 if small else 1
    users, items, width = 10_000 // shrink, 1_000_000 // shrink, 64
    cases, scorer = random_cases(users, items, 20), random_scorer(users, items, width)
    config = {"users": users, "candidates": items, "width": width, "seen": 20}
    times: list[float] = []
    peak = peak_gb(lambda: times.append(seconds_of(lambda: rank_cases(scorer, cases))), beyond=True)
    report("ranking_million_memory", [peak], unit="GB", bar=2.0, small=small, config=config)
    report("ranking_million_time", times, unit="s", small=small, config=config)


def movielens_size(small: bool, rounds: int) -> None:
    """Time at the size of MovieLens-1M."""
    shrink = 20 if small else 1
    users, items, width = 6040 // shrink, 3416 // shrink, 128
    cases, scorer = random_cases(users, items, 160), random_scorer(users, items, width)
    report(
        "ranking_ml1m_size",
        [seconds_of(lambda: rank_cases(scorer, cases)) for _ in range(rounds)],
        unit="s",
        bar=20.0,
        small=small,
        config={"users": users, "candidates": items, "width": width, "seen": 160},
    )


def main() -> None:
    given = arguments(__doc__)
    million(given.small)
    movielens_size(given.small, given.rounds)


if __name__ == "__main__":
    main()
