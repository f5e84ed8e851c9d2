"""The dial of the popularity term: what it does to scores, that uses agree, what it is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.prepare import prepare
from mmrec.config import change, load_config, parse_config
from mmrec.data.ragged import IntArray, Ragged
from mmrec.errors import ConfigError
from mmrec.evaluation.asked import ask_validation
from mmrec.evaluation.breakdown import thirds
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.protocol import Cases, training_popularity
from mmrec.evaluation.ranking import Ranking, rank_cases
from mmrec.evaluation.tail import SHARES, TailPoint, tail_curve, tail_point
from mmrec.loaded import LoadedRun, load_run
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.retrieval.exported import Export
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
ROOT = Path(__file__).resolve().parent.parent
HALF = ("evaluation.popularity_share=0.5",)


def curve_of(loaded: LoadedRun, popularity: IntArray, shares: Sequence[float]) -> list[TailPoint]:
    asked = ask_validation(loaded)
    assert asked is not None
    return tail_curve(loaded.model, asked, popularity, shares)


def test_scores_keep_the_share_of_the_term_and_nothing_else_moves(tiny_run: Path) -> None:
    whole, half = Recommender.load(tiny_run).retriever, Recommender.load(tiny_run, None, HALF)
    side, other = whole.item_side, half.retriever.item_side
    assert torch.equal(side[:, :-1], other[:, :-1])
    model = whole.model
    counts = torch.from_numpy(whole.counts)
    assert model.popularity is not None
    with torch.no_grad():
        term = model.popularity(counts) * model.temperature
        content = whole.vectors.content
        offset = model.bias_of_new(content) * model.temperature * (counts == 0)
    torch.testing.assert_close(other[:, -1], 0.5 * term + offset)
    assert (side[:, -1] != other[:, -1]).any() and (counts == 0).any()
    assert content is not None
    torch.testing.assert_close(
        half.retriever.popularity_of_new(content), whole.popularity_of_new(content)
    )
    assert half.model_hash == Recommender.load(tiny_run).model_hash  # one space of vectors


def test_the_loss_has_the_whole_term(tiny_run: Path) -> None:
    model = load_run(tiny_run, overrides=HALF).model
    counts = torch.tensor([1.0, 5.0])
    assert model.popularity is not None and model.popularity_share == 0.5
    assert torch.equal(model.train().bias(counts), model.popularity(counts))
    torch.testing.assert_close(model.eval().bias(counts), 0.5 * model.popularity(counts))


def test_export_bundle_and_recommend_agree(tiny_run: Path, tmp_path: Path) -> None:
    export_run(tiny_run, tmp_path / "out", bundle=True, overrides=HALF)
    export = Export.open(tmp_path / "out")
    assert export.manifest["popularity_share"] == 0.5
    item_ids, items = export.items()
    user_ids, users = export.users()
    live = Recommender.load(tiny_run, overrides=HALF)
    bundle = Recommender.load(tmp_path / "out" / "bundle")  # it keeps what it was exported with
    whole = Recommender.load(tmp_path / "out" / "bundle", overrides=[HALF[0].replace("0.5", "1")])
    moved = 0.0
    for row in (0, 9):
        scores = dict(zip(item_ids, items @ users[row], strict=True))
        found = live.recommend(user_ids[row], k=5)
        for each in found:
            assert each.score == pytest.approx(float(scores[each.item_id]), abs=1e-5)
        served = bundle.recommend(user_ids[row], k=5)
        assert [each.item_id for each in served] == [each.item_id for each in found]
        as_trained = Recommender.load(tiny_run).recommend(user_ids[row], k=14)
        again = whole.recommend(user_ids[row], k=14)
        assert [each.item_id for each in again] == [each.item_id for each in as_trained]
        moved += sum(abs(each.score - scores[each.item_id]) for each in as_trained)
    assert moved > 1e-3


def test_evaluate_honours_it_and_says_so(tiny_run_id: Path) -> None:
    document = evaluate_run(tiny_run_id, overrides=HALF)
    assert document["popularity_share"] == 0.5
    tail = json.loads((tiny_run_id / "report.json").read_text())["tail"]
    assert tail["popularity_share"] == 0.5
    assert [each["popularity_share"] for each in tail["curve"]] == [0, 0.25, 0.5, 0.75, 1]
    page = (tiny_run_id / "report.html").read_text()
    assert "Unpopular items" in page and "0.5 (this page)" in page
    validation = evaluate_run(tiny_run_id, split="validation", overrides=HALF)
    at_half = tail["curve"][2]["ndcg"]
    assert at_half == pytest.approx(validation["models"]["mmrec"]["all"]["ndcg@10"])
    whole = evaluate_run(tiny_run_id)
    assert "popularity_share" not in whole
    assert whole["models"]["ease"] == document["models"]["ease"]


def test_the_curve_is_that_of_models_asked_with_each_share(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.split is not None
    popularity = training_popularity(loaded.split)
    curve = curve_of(loaded, popularity, (0.0, 1.0))
    for point in curve:
        key = f"evaluation.popularity_share={point.popularity_share:g}"
        other = load_run(tiny_run, overrides=[key])
        (same,) = curve_of(other, popularity, ())
        assert same.popularity_share == point.popularity_share
        assert same.ndcg == pytest.approx(point.ndcg)
        assert same.tail_exposure == pytest.approx(point.tail_exposure)


def test_figures_of_head_and_tail_equal_a_slow_loop() -> None:
    popularity = np.array([30, 25, 9, 8, 8, 5, 4, 3, 3, 0])
    part = thirds(popularity, popularity)
    scores = torch.rand(12, 10, generator=torch.Generator().manual_seed(0))

    class Table:
        def score(self, case_rows: np.ndarray, candidate_rows: slice) -> torch.Tensor:
            return scores[torch.from_numpy(case_rows)][:, candidate_rows].clone()

    random = np.random.default_rng(0)
    targets = [random.permutation(10)[:3] for _ in range(12)]
    empty = Ragged.from_rows([[] for _ in targets])
    cases = Cases(
        user_index=np.arange(12),
        history=empty,
        seen=empty,
        targets=Ragged.from_rows(targets),
        slice=["warm"] * 12,
        candidates=np.arange(10),
        candidate_is_cold=np.zeros(10, dtype=bool),
        num_items=10,
    )
    ranking = rank_cases(Table(), cases)
    short = Ranking(ranking.rank, ranking.rank_among_cold, ranking.top_items[:, :2], scores.numpy())
    point = tail_point(0.5, short, cases, popularity)
    tail = {item for item in range(10) if part[item] == 0}
    lists = [scores[row].argsort(descending=True)[:2].tolist() for row in range(12)]
    shown = [item for each in lists for item in each]
    assert point.tail_coverage == pytest.approx(len(tail & set(shown)) / len(tail))
    assert point.tail_exposure == pytest.approx(sum(item in tail for item in shown) / 24)
    for wanted, found in ((0, point.tail_ndcg), (2, point.head_ndcg)):
        values = []
        for row, own in enumerate(targets):
            ranks = [
                1 + int((scores[row] > scores[row, i]).sum()) for i in own if part[i] == wanted
            ]
            if ranks:
                ideal = sum(1 / np.log2(2 + place) for place in range(len(ranks)))
                values.append(sum(1 / np.log2(1 + rank) for rank in ranks) / ideal)
        assert found == pytest.approx(np.mean(values))
    assert point.tail_recall == 1.0  # ten candidates: every target is among the first ten


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("evaluation.popularity_share=1.5", "popularity_share"),
        ("model.width=32", "train another run to change model.width"),
        ("evaluation.popularity_share", "write section.field=value"),
    ],
)
def test_bad_overrides_of_a_run_are_refused(tiny_run_id: Path, override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        load_run(tiny_run_id, overrides=[override])
    assert "\n" not in str(caught.value)


def test_a_share_of_no_term_is_refused() -> None:
    document = {"model": {"item": "id", "popularity": False}}
    with pytest.raises(ConfigError, match="there is no such term"):
        parse_config({**document, "evaluation": {"popularity_share": 0.5}})
    parse_config(document)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_on_movielens_100k_the_tail_gains_at_a_bounded_cost(
    shared_data: Path, tmp_path: Path
) -> None:
    """Ids alone, twelve epochs; validation targets, one a user; docs/log.md has the figures.

    With half of the term the tail is shown and found more often, for at most a tenth of the head's
    NDCG@10; each quarter less shows more of the tail.
    """
    table = ROOT / "configs" / "catalogues" / "movielens-100k.yaml"
    changes = ["items.image=[]", "split={protocol: leave_one_out}"]
    prepare(table, shared_data, tmp_path / "data", overrides=changes, num_workers=1)
    settings = {"training.max_epochs": 12, "training.evaluate_every": 12}
    config = change(load_config(ROOT / "configs" / "movielens-100k-id.yaml"), settings, "test")
    train(config, tmp_path / "data", tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.split is not None
    curve = curve_of(loaded, training_popularity(loaded.split), SHARES)
    assert [point.popularity_share for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    _, _, half, _, whole = curve
    assert half.tail_coverage > 2 * whole.tail_coverage  # type: ignore[operator]
    assert half.tail_recall > whole.tail_recall  # type: ignore[operator]
    cost = 1 - half.head_ndcg / whole.head_ndcg  # type: ignore[operator]
    assert 0 < cost < 0.1, cost
    coverage = [point.tail_coverage for point in curve]
    assert coverage == sorted(coverage, reverse=True)  # type: ignore[type-var]
