"""Re-ranking: against determinants and loops, the plain order at strength 0, limits, monotone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrec.data.ragged import Ragged
from mmrec.evaluation.lists import intra_list_diversity
from mmrec.retrieval.rerank import (
    METHODS,
    FloatArray,
    Limit,
    Method,
    choose_in_order,
    choose_varied,
    gain_of,
)


def pool(seed: int, size: int, width: int = 6) -> tuple[FloatArray, FloatArray]:
    """Scores, best first, and unit vectors around three tastes, of which like ones score alike."""
    random = np.random.default_rng(seed)
    group = random.integers(0, 3, size)
    vectors = random.normal(size=(3, width))[group] + 0.3 * random.normal(size=(size, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = random.normal(size=3)[group] + 0.3 * random.normal(size=size)
    order = np.argsort(-scores)
    return scores[order], vectors[order]


def kernel(vectors: FloatArray) -> FloatArray:
    found: FloatArray = (1 + vectors @ vectors.T) / 2
    np.fill_diagonal(found, 1 + 1e-6)
    return found


def relevance_of(scores: FloatArray) -> FloatArray:
    found: FloatArray = (scores - scores.min()) / (scores.max() - scores.min())
    return found


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_dpp_takes_what_determinants_say(seed: int, strength: float) -> None:
    scores, vectors = pool(seed, 9)
    relevance, similarity = relevance_of(scores), kernel(vectors)

    def value(places: list[int]) -> float:
        logdet = np.linalg.slogdet(similarity[np.ix_(places, places)])[1]
        return float((1 - strength) * relevance[places].sum() + strength * logdet)

    expected: list[int] = []
    for _ in range(6):
        rest = [place for place in range(9) if place not in expected]
        expected.append(max(rest, key=lambda place: value([*expected, place])))
    assert choose_varied(gain_of("dpp", scores, vectors, strength), 9, 6) == expected


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_dpp_is_the_kernel_of_the_paper(strength: float) -> None:
    """The greedy step on L = q S q with q = exp(r (1 - s) / 2s) is the step on our sum."""
    scores, vectors = pool(1, 8)
    quality = np.exp(relevance_of(scores) * (1 - strength) / (2 * strength))
    whole = quality[:, None] * kernel(vectors) * quality
    expected: list[int] = []
    for _ in range(5):
        rest = [place for place in range(8) if place not in expected]
        sets = {place: [*expected, place] for place in rest}
        expected.append(max(rest, key=lambda p: np.linalg.det(whole[np.ix_(sets[p], sets[p])])))
    assert choose_varied(gain_of("dpp", scores, vectors, strength), 8, 5) == expected


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9, 1.0])
def test_mmr_takes_what_a_loop_takes(strength: float) -> None:
    scores, vectors = pool(3, 12)
    relevance, similarity = relevance_of(scores), (1 + vectors @ vectors.T) / 2
    expected: list[int] = []
    for _ in range(7):
        gains = {
            place: (1 - strength) * relevance[place]
            - strength * max((similarity[place, other] for other in expected), default=0)
            for place in range(12)
            if place not in expected
        }
        expected.append(max(gains, key=lambda place: gains[place]))
    assert choose_varied(gain_of("mmr", scores, vectors, strength), 12, 7) == expected


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 1000), size=st.integers(1, 30), k=st.integers(1, 12))
def test_strength_nought_is_the_plain_order(method: Method, seed: int, size: int, k: int) -> None:
    scores, vectors = pool(seed, size)
    chosen = choose_varied(gain_of(method, scores, vectors, 0.0), size, k)
    assert chosen == list(range(min(size, k)))


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 1000), strength=st.floats(0, 1), copies=st.integers(1, 4))
def test_lists_are_whole_and_distinct_however_alike_items_are(
    method: Method, seed: int, strength: float, copies: int
) -> None:
    scores, vectors = pool(seed, 6, width=2)
    scores, vectors = np.repeat(scores, copies), np.repeat(vectors, copies, axis=0)
    vectors[0] = 0  # an item without content
    chosen = choose_varied(gain_of(method, scores, vectors, strength), len(scores), 5)
    assert len(set(chosen)) == len(chosen) == 5 and chosen[0] == 0


@pytest.mark.parametrize("method", METHODS)
def test_variety_grows_and_relevance_falls_with_the_strength(method: Method) -> None:
    varied, relevant = [], []
    for strength in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0):
        diversity, total = 0.0, 0.0
        for seed in range(40):
            scores, vectors = pool(seed, 60)
            chosen = choose_varied(gain_of(method, scores, vectors, strength), 60, 10)
            shown = np.array([chosen])
            diversity += float(intra_list_diversity(shown, torch.from_numpy(vectors).float())[0])
            total += float(scores[chosen].sum())
        varied.append(diversity)
        relevant.append(total)
    # a determinant is no mean of pairs: from where it outweighs relevance the mean stands still
    slack = {"mmr": 0.0, "dpp": 0.002 * varied[-1]}[method]
    assert min(np.diff(varied)) >= -slack and varied[0] < 0.7 * varied[-1]
    assert relevant == sorted(relevant, reverse=True) and relevant[0] > relevant[-1]


@given(
    words=st.lists(st.sets(st.integers(0, 3), max_size=2), min_size=1, max_size=14),
    most=st.integers(1, 3),
    k=st.integers(1, 8),
    varied=st.booleans(),
)
def test_limits_hold_and_leave_no_place_empty(
    words: list[set[int]], most: int, k: int, varied: bool
) -> None:
    rows = Ragged.from_rows([sorted(each) for each in words])
    scores, vectors = pool(0, len(words))
    if varied:
        gain = gain_of("mmr", scores, vectors, 0.5)
        chosen = choose_varied(gain, len(words), k, [Limit(rows, most)])
    else:
        chosen = choose_in_order(range(len(words)), k, [Limit(rows, most)])
    shown = [word for place in chosen for word in words[place]]
    counts = {word: shown.count(word) for word in range(4)}
    assert max(counts.values()) <= most and len(set(chosen)) == len(chosen) <= k
    if len(chosen) < k:  # nothing that is left would fit
        left = [words[place] for place in range(len(words)) if place not in chosen]
        assert all(any(counts[word] == most for word in each) for each in left)
