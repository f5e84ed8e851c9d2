"""New items last within the first places: ranks against lists written down, lists of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec.data.ragged import IntArray, Ragged
from mmrec.errors import ConfigError
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.new_last import NEW_LAST, NewLast, in_lists
from mmrec.evaluation.protocol import Cases
from mmrec.evaluation.ranking import rank_cases
from mmrec.evaluation.sweep import ranks_at_offsets, sweep_models
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.rerank import new_last

pytest_plugins = ["tiny_run"]

NUM_ITEMS, NUM_CASES = 40, 36
IS_NEW = np.arange(NUM_ITEMS) % 4 == 3
POPULARITY = np.where(IS_NEW, 0, 5)


class Table:
    """Scores of a table, those of new items moved by a number."""

    def __init__(self, scores: Tensor, offset: float = 0.0) -> None:
        self.scores = scores + offset * torch.from_numpy(IS_NEW).float()

    def score(self, case_rows: IntArray, candidate_rows: slice) -> Tensor:
        return self.scores[torch.from_numpy(case_rows)][:, candidate_rows].clone()


def make_cases(*, num_seen: int = 4) -> Cases:
    """Warm cases of two targets and cold ones of one; some items seen."""
    generator = np.random.default_rng(0)
    slices = ["warm" if row % 2 == 0 else "cold" for row in range(NUM_CASES)]
    seen, targets = [], []
    for name in slices:
        known = generator.permutation(np.flatnonzero(~IS_NEW))
        new = generator.permutation(np.flatnonzero(IS_NEW))
        targets.append(known[:2] if name == "warm" else new[:1])
        rest = generator.permutation(np.concatenate([known[2:], new[1:]]))
        seen.append(np.sort(rest[:num_seen]))
    return Cases(
        user_index=np.arange(NUM_CASES),
        history=Ragged.from_rows(seen),
        seen=Ragged.from_rows(seen),
        targets=Ragged.from_rows(targets),
        slice=slices,
        candidates=np.arange(NUM_ITEMS),
        candidate_is_cold=IS_NEW,
        num_items=NUM_ITEMS,
    )


def written_down(scores: Tensor, cases: Cases, places: int) -> list[list[int]]:
    """Every list: by score, then known before new within the first places."""
    lists = []
    for case in range(len(cases)):
        seen = set(cases.seen[case].tolist())
        order = [
            item for item in scores[case].argsort(descending=True).tolist() if item not in seen
        ]
        first = order[:places]
        lists.append(
            [item for item in first if not IS_NEW[item]]
            + [item for item in first if IS_NEW[item]]
            + order[places:]
        )
    return lists


def some_scores(seed: int = 0) -> Tensor:
    return torch.randn(NUM_CASES, NUM_ITEMS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("places", [1, 5, 10, 60])
@pytest.mark.parametrize("item_tile", [65_536, 7])
@pytest.mark.parametrize("num_seen", [0, 33])
def test_ranks_and_lists_equal_those_written_down(
    places: int, item_tile: int, num_seen: int
) -> None:
    cases, scores = make_cases(num_seen=num_seen), some_scores()
    scorer = NewLast(Table(scores), places, IS_NEW)
    found = rank_cases(scorer, cases, top_k=4, item_tile=item_tile)
    lists = written_down(scores, cases, places)
    expected = [
        1.0 + lists[case].index(item)
        for case in range(len(cases))
        for item in cases.targets[case].tolist()
    ]
    assert found.rank.tolist() == expected
    assert [[item for item in row if item >= 0] for row in found.top_items.tolist()] == [
        row[:4] for row in lists
    ]
    shown = found.top_scores[found.top_items >= 0]
    assert shown.tolist() == [
        scores[case, item].item() for case, row in enumerate(lists) for item in row[:4]
    ]
    by_score = rank_cases(Table(scores), cases)
    same = (by_score.rank <= places) == (found.rank <= places)
    assert same.all()  # who is among the first stays
    np.testing.assert_array_equal(by_score.rank_among_cold, found.rank_among_cold)


@pytest.mark.parametrize("places", [3, 10, 60])
@pytest.mark.parametrize("num_seen", [0, 33])
def test_a_sweep_ranks_as_a_ranking_with_the_offset_added(places: int, num_seen: int) -> None:
    cases, scores = make_cases(num_seen=num_seen), some_scores(1)
    offsets = np.array([-9.0, -1.0, -0.3, 0.0, 0.4, 1.2, 9.0])
    found = ranks_at_offsets(NewLast(Table(scores), places, IS_NEW), cases, IS_NEW, offsets)
    for offset, ranks in zip(offsets, found, strict=True):
        moved = NewLast(Table(scores, float(offset)), places, IS_NEW)
        np.testing.assert_allclose(ranks, rank_cases(moved, cases).rank)


def test_as_many_hits_on_new_items_cost_less_of_the_others() -> None:
    """What the order is for: at every offset the same new items are met, and warm loses less."""
    cases, scores = make_cases(), some_scores(2)
    scores[
        torch.arange(NUM_CASES), torch.from_numpy(cases.targets.values[cases.targets.offsets[:-1]])
    ] += 1.0
    scorers = {"by score": Table(scores), "new last": in_lists(Table(scores), 10, IS_NEW)}
    by_score, last = sweep_models(scorers, cases, POPULARITY)
    assert by_score.offset == last.offset and by_score.cold_hr == last.cold_hr
    gained = np.array(last.warm_ndcg) - by_score.warm_ndcg
    assert (gained >= -1e-12).all() and gained.max() > 0.01
    lost = np.array(by_score.cold_ndcg) - last.cold_ndcg
    assert (lost >= -1e-12).all() and lost.max() > 0.01
    assert in_lists(scorers["by score"], None, IS_NEW) is scorers["by score"]


def test_order_of_one_list() -> None:
    is_new = np.array([True, False, True, False, True])
    assert new_last(is_new, 4).tolist() == [1, 3, 0, 2, 4]
    assert new_last(is_new, 1).tolist() == [0, 1, 2, 3, 4]
    assert new_last(is_new, 9).tolist() == [1, 3, 0, 2, 4]
    assert new_last(np.zeros((2, 0), dtype=bool), 3).shape == (2, 0)


def lists_of(recommender: Recommender, k: int = 6) -> list[list[str]]:
    users = recommender.retriever.users.user_ids
    return [[each.item_id for each in recommender.recommend(user, k=k)] for user in users]


def test_lists_of_a_run_and_of_its_bundle(tiny_run: Path, tmp_path: Path) -> None:
    """With a boost new items reach the lists; then they stand last in the first places."""
    boosted = "evaluation.new_boost=0.5"
    by_score = Recommender.load(tiny_run, overrides=[boosted])
    counts = by_score.retriever.counts
    new = {each for each, n in zip(by_score.retriever.items.item_ids, counts, strict=True) if not n}
    plain = lists_of(Recommender.load(tiny_run))
    assert sum(each in new for row in lists_of(by_score) for each in row) > sum(
        each in new for row in plain for each in row
    )
    expected = [
        sorted(row[:4], key=lambda each: each in new) + row[4:] for row in lists_of(by_score)
    ]
    assert expected != lists_of(by_score)
    last = [boosted, "evaluation.new_last=4"]
    found = Recommender.load(tiny_run, overrides=last)
    assert lists_of(found) == expected
    places = [each.rank for each in found.recommend(found.retriever.users.user_ids[0], k=6)]
    assert places == [1, 2, 3, 4, 5, 6]
    export_run(tiny_run, tmp_path / "out", bundle=True, overrides=last)
    assert lists_of(Recommender.load(tmp_path / "out" / "bundle")) == expected
    # what is like an item, or looked for by words, has no place kept for what is new
    item = by_score.retriever.items.item_ids[0]
    assert [each.item_id for each in found.similar(item, k=6)] == [
        each.item_id for each in by_score.similar(item, k=6)
    ]


def test_the_boost_is_in_the_score_of_new_items_alone(tiny_run: Path) -> None:
    plain = Recommender.load(tiny_run).retriever
    boosted = Recommender.load(tiny_run, overrides=["evaluation.new_boost=0.25"]).retriever
    gained = (boosted.item_side - plain.item_side).cpu().numpy()
    assert (gained[:, :-1] == 0).all()
    np.testing.assert_allclose(gained[:, -1], 0.25 * (plain.counts == 0), atol=1e-6)
    content = plain.vectors.embedding[:2]
    np.testing.assert_allclose(
        boosted.popularity_of_new(content) - plain.popularity_of_new(content), 0.25, atol=1e-6
    )


def test_evaluate_tells_what_new_items_last_would_cost(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    evaluate_run(run)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    both = {name + last for name in ("mmrec", "content_knn") for last in ("", NEW_LAST)}
    assert both <= {each["model"] for each in report["sweeps"]}
    assert "mmrec" + NEW_LAST in {each["model"] for each in report["at_costs"]}
    assert not any(name.endswith(NEW_LAST) for name in report["models"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("mmrec" + NEW_LAST) >= 2 and "evaluation.new_last=10" in page
    # one setting, and the table, the ranks and the sweep are of such lists
    document = evaluate_run(run, overrides=["evaluation.new_last=3", "evaluation.new_boost=0.2"])
    assert (document["new_last"], document["new_boost"]) == (3, 0.2)
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert "mmrec" + NEW_LAST not in {each["model"] for each in report["sweeps"]}
    assert "new items last in the first" in (run / "report.html").read_text(encoding="utf-8")


def test_a_share_of_no_places_is_refused(tiny_run: Path) -> None:
    with pytest.raises(ConfigError, match="new_last"):
        Recommender.load(tiny_run, overrides=["evaluation.new_last=0"])
