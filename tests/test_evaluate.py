"""From scorers to the files of a run, slices and paired comparisons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.data.ragged import Ragged
from mmrec.evaluation.baselines import fit_baselines
from mmrec.evaluation.evaluate import (
    RANK_COLUMNS,
    SLICES,
    Evaluation,
    compare_models,
    evaluate_scorers,
    metrics_document,
    user_values,
    write_evaluation,
)
from mmrec.evaluation.protocol import (
    Cases,
    load_cases,
    protocol_document,
    training_histories,
    training_popularity,
)
from mmrec.evaluation.ranking import VectorScorer, rank_cases

USER_IDS = ["u0", "u1", "u2"]
ITEM_IDS = [f"i{item}" for item in range(6)]
POPULARITY = np.array([9, 5, 3, 1, 0, 0])


class Fixed:
    """One list for every case."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = torch.tensor(scores)

    def score(self, case_rows: np.ndarray, candidate_rows: slice) -> Tensor:
        return self.scores[candidate_rows].repeat(len(case_rows), 1)


def _cases() -> Cases:
    """User 0 has a warm and a cold case, user 1 two warm targets; items 4 and 5 are cold."""
    return Cases(
        user_index=np.array([0, 0, 1]),
        history=Ragged.from_rows([[0], [0], [1]]),
        seen=Ragged.from_rows([[0], [0], []]),
        targets=Ragged.from_rows([[1], [5], [0, 3]]),
        slice=["warm", "cold", "warm"],
        candidates=np.arange(6),
        candidate_is_cold=np.array([False] * 4 + [True] * 2),
        num_items=6,
    )


def _evaluation() -> Evaluation:
    scorers = {"mmrec": Fixed([6, 5, 4, 3, 2, 1]), "random": Fixed([1, 1, 1, 1, 1, 1])}
    return evaluate_scorers(scorers, _cases(), popularity=POPULARITY)


def test_slices_by_hand() -> None:
    models = _evaluation().models
    assert list(models) == ["mmrec", "random"]
    ours = models["mmrec"]
    assert list(ours) == list(SLICES) and ours["new_users"] is None
    every, warm, cold, among = (ours[name] for name in SLICES[:4])
    assert every is not None and warm is not None and cold is not None and among is not None
    assert (every["num_users"], every["num_targets"]) == (2, 4)
    assert (warm["num_users"], warm["num_targets"]) == (2, 3)
    assert (cold["num_users"], cold["num_targets"]) == (1, 1)
    # seen 0 is removed: item 1 is first for user 0, item 5 is fifth, and second among cold ones
    assert cold["hr@1"] == 0 and cold["hr@5"] == 1 and cold["mrr"] == pytest.approx(1 / 5)
    assert among["mrr"] == pytest.approx(1 / 2) and "coverage@1" not in among
    assert warm["hr@1"] == 1 and warm["recall@1"] == pytest.approx((1 + 0.5) / 2)
    assert every["mrr"] == pytest.approx(((1 + 1 / 5) / 2 + 1) / 2)
    assert warm["coverage@1"] == pytest.approx(2 / 6)
    assert warm["popularity@1"] == pytest.approx((5 + 9) / 2)
    assert models["random"]["cold"] is not None
    assert models["random"]["cold"]["mrr"] == pytest.approx(1 / 3)


def test_written_files_have_the_agreed_shape(tmp_path: Path) -> None:
    evaluation = _evaluation()
    document = metrics_document(
        evaluation,
        split="leave_one_out",
        protocol={"name": "leave_one_out", "hash": "abc"},
        data_hash="def",
        checkpoint="step-10",
        seed=0,
    )
    write_evaluation(tmp_path, "test", evaluation, document, user_ids=USER_IDS, item_ids=ITEM_IDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "metrics-test.json",
        "ranks-test.parquet",
    ]
    read = json.loads((tmp_path / "metrics-test.json").read_text())
    keys = ["schema", "split", "protocol", "data_hash", "checkpoint", "seed", "models"]
    assert list(read) == keys
    assert read["models"]["mmrec"]["new_users"] is None
    assert read["models"]["mmrec"]["warm"]["hr@10"] == 1.0
    ranks = pl.read_parquet(tmp_path / "ranks-test.parquet")
    assert tuple(ranks.columns) == RANK_COLUMNS
    ours = ranks.filter(pl.col("model") == "mmrec").drop("model").rows()
    assert ours == [
        ("u0", "i1", "warm", 1.0),
        ("u0", "i5", "cold", 5.0),
        ("u1", "i0", "warm", 1.0),
        ("u1", "i3", "warm", 4.0),
        ("u0", "i5", "cold_among_cold", 2.0),
    ]


def test_metrics_can_be_made_again_from_the_ranks(tmp_path: Path) -> None:
    evaluation = _evaluation()
    write_evaluation(tmp_path, "test", evaluation, {}, user_ids=USER_IDS, item_ids=ITEM_IDS)
    ranks = pl.read_parquet(tmp_path / "ranks-test.parquet")
    for model, slices in evaluation.models.items():
        for slice_name, metrics in slices.items():
            if metrics is None:
                continue
            for metric in ("hr@5", "ndcg@10", "map@50", "mrr"):
                values = user_values(ranks, model=model, slice_name=slice_name, metric=metric)
                assert values["value"].mean() == pytest.approx(metrics[metric])


def test_comparison_of_two_models() -> None:
    generator = np.random.default_rng(0)
    users = [f"u{user:03d}" for user in range(300)]
    better = generator.integers(1, 40, size=300).astype(float)
    tables = [
        pl.DataFrame(
            {
                "model": [name] * 300,
                "user_id": users,
                "item_id": users,
                "slice": ["warm"] * 300,
                "rank": ranks,
            }
        )
        for name, ranks in (("mmrec", better), ("ease", better + 5), ("same", better))
    ]
    ranks = pl.concat(tables)
    worse = compare_models(ranks, "ease", "mmrec", metric="ndcg@10")
    assert worse.difference < 0 and worse.interval[1] < 0 and worse.p_value < 0.01
    assert worse.num_users == 300
    equal = compare_models(ranks, "same", "mmrec", metric="ndcg@10")
    assert equal.difference == 0 and equal.p_value == 1
    with pytest.raises(ValueError, match="nothing of model 'svd' on slice 'warm'"):
        compare_models(ranks, "svd", "mmrec", metric="ndcg@10")
    with pytest.raises(ValueError, match="metric 'auc@10'"):
        compare_models(ranks, "ease", "mmrec", metric="auc@10")


def test_progress_names_the_model() -> None:
    calls: list[tuple[str, int, int]] = []
    evaluate_scorers(
        {"mmrec": Fixed([1.0] * 6)},
        _cases(),
        popularity=POPULARITY,
        progress=lambda name, done, total: calls.append((name, done, total)),
    )
    assert calls == [("mmrec", 3, 3)]


def test_from_tables_to_figures(tmp_path: Path) -> None:
    """A prepared folder with cold items, through the protocol and the baselines."""
    generator = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    names = [f"film {item}" for item in range(40)]
    pl.DataFrame({"id": names, "title": names}).write_csv(source / "items.csv")
    rows = [
        (f"user {user}", names[item], place)
        for user in range(60)
        for place, item in enumerate(generator.permutation(35)[: generator.integers(3, 25)])
    ]
    log = pl.DataFrame(rows, schema=["user", "item", "place"], orient="row")
    log.write_csv(source / "log.csv")
    (tmp_path / "catalogue.yaml").write_text(
        "name: films\nkind: video\nrepeats: forbid\n"
        "items: {table: items.csv, id: id, text: [title]}\n"
        "interactions: {table: log.csv, user: user, item: item, order: place}\n"
        "split: {protocol: leave_one_out, cold_validation: 0.1, cold_test: 0.2, seed: 0}\n"
    )
    prepare(tmp_path / "catalogue.yaml", source, tmp_path / "data", num_workers=1)
    data = PreparedData.open(tmp_path / "data")
    split = data.split()
    cases = load_cases(data, split, "test")
    roles = split.items.sort("item_index")["role"].to_numpy()
    train = training_histories(split)
    assert set(roles[cases.history.values]) == set(roles[train.values]) == {"warm"}
    assert len(cases.candidates) == 35 and cases.candidate_is_cold.sum() == 7
    for case, name in enumerate(cases.slice):
        user = data.user_ids[cases.user_index[case]]
        whole = [data.items.index_of(item) for item in log.filter(user=user)["item"]]
        target = int(cases.targets[case][0])
        before = whole[: whole.index(target)]
        assert roles[target] == {"warm": "warm", "cold": "cold_test"}[name]
        assert cases.history[case].tolist() == [item for item in before if roles[item] == "warm"]
        assert set(cases.seen[case].tolist()) == set(before)

    scorers = fit_baselines(
        ["random", "popularity", "ease", "markov"],
        cases,
        train_users=split.train.user_index,
        train=train,
    )
    evaluation = evaluate_scorers(scorers, cases, popularity=training_popularity(split))
    document = metrics_document(
        evaluation,
        split=split.name,
        protocol=protocol_document(split, "test", repeats=data.catalogue.repeats),
        data_hash=data.data_hash,
        checkpoint=None,
        seed=0,
    )
    write_evaluation(
        tmp_path / "run",
        "test",
        evaluation,
        document,
        user_ids=data.user_ids,
        item_ids=data.items.item_ids,
    )
    read = json.loads((tmp_path / "run" / "metrics-test.json").read_text())
    assert read["split"] == "leave_one_out-cold" and len(read["protocol"]["hash"]) == 64
    for slices in read["models"].values():
        assert slices["warm"]["num_targets"] == cases.slice.count("warm")
        assert slices["cold"]["num_targets"] == cases.slice.count("cold") > 0
        assert slices["cold_among_cold"]["hr@10"] == 1.0  # seven cold candidates
    ranks = pl.read_parquet(tmp_path / "run" / "ranks-test.parquet")
    assert set(ranks["item_id"]) <= set(names)


def test_an_item_counts_from_its_release_on(tmp_path: Path) -> None:
    """From the catalogue file to the rank: `late` would lead every list, had it been out."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "items.csv").write_text(
        "id,title,out,gone\na,A,,\nb,B,,\nc,C,,\nd,D,,1970-01-02\nlate,Late,1970-01-03,\n"
    )
    rows = [
        ("early", "abcd"),  # asked within the first day, when `late` is not out
        ("middle", "dbca"),  # asked on the second day, when `d` is gone and `late` not out
    ]
    log = ["user,item,when"]
    for day, (user, items) in enumerate(rows):
        log += [f"{user},{item},{day * 86_400 + 100 * n}" for n, item in enumerate(items)]
    log += [f"last,{item},{200_000 + 100 * n}" for n, item in enumerate(["a", "b", "late", "c"])]
    (source / "log.csv").write_text("\n".join(log) + "\n")
    (tmp_path / "catalogue.yaml").write_text(
        "name: films\nkind: video\nrepeats: allow\n"
        "items: {table: items.csv, id: id, text: [title], available: {from: out, until: gone}}\n"
        "interactions: {table: log.csv, user: user, item: item, time: when}\n"
    )
    prepare(tmp_path / "catalogue.yaml", source, tmp_path / "data", num_workers=1)
    data = PreparedData.open(tmp_path / "data")
    cases = load_cases(data, data.split(), "test")
    users = [data.user_ids[index] for index in cases.user_index]
    assert sorted(users) == ["early", "last", "middle"]
    scores = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    ranks = dict(zip(users, rank_cases(VectorScorer(*scores), cases).rank.tolist(), strict=True))
    # the targets are d, a and c; scores rise from a to `late`
    assert ranks == {"early": 1.0, "middle": 3.0, "last": 2.0}
