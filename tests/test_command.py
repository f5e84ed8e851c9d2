"""`mmrec evaluate` on a tiny run: files, knock-outs, and lists that keep the rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from compared_runs import configure

from data_prep.shards import PreparedData
from mmrec.config import parse_config
from mmrec.errors import WeightsError
from mmrec.evaluation.ablation import content_of_subsets, knock_out, of_some_users, untrained
from mmrec.evaluation.asked import ask_validation
from mmrec.evaluation.command import evaluate_run, initial_content, validation_sweeps
from mmrec.evaluation.new_last import NEW_LAST
from mmrec.evaluation.protocol import load_cases, training_popularity
from mmrec.evaluation.ranking import VectorScorer, rank_cases
from mmrec.evaluation.strips import even_strips, extreme_strips
from mmrec.loaded import load_run, open_source
from mmrec.training.step import TrainedModel
from mmrec.training.train import train
from mmrec.training.validate import case_vectors

pytest_plugins = ["tiny_run"]


def test_evaluate_writes_figures_ranks_and_report(tiny_run: Path) -> None:
    document = evaluate_run(tiny_run)
    assert json.loads((tiny_run / "metrics-test.json").read_text(encoding="utf-8")) == document
    assert set(document) >= {"schema", "split", "protocol", "data_hash", "checkpoint", "seed"}
    assert "mmrec" in document["models"] and "content_knn" in document["models"]
    ranks = pl.read_parquet(tiny_run / "ranks-test.parquet")
    ours = ranks.filter(pl.col("model") == "mmrec")
    whole = document["models"]["mmrec"]["all"]
    assert whole["hr@10"] == pytest.approx((ours["rank"] <= 10).mean(), abs=0.05)
    assert {"gini@10", "diversity@10"} <= set(whole)
    assert (tiny_run / "report.html").stat().st_size > 10_000
    report = json.loads((tiny_run / "report.json").read_text(encoding="utf-8"))
    assert report["models"] == document["models"]
    assert set(report["intervals"]["ease"]["cold"]) == {"hr@10", "ndcg@10"}
    others = set(document["models"]) - {"mmrec"}
    assert {(each["second"], each["slice"]) for each in report["tests"]} == {
        (name, part) for name in others for part in ("all", "warm", "cold", "cold_among_cold")
    }
    twice = {name + NEW_LAST for name in ("mmrec", "content_knn")}
    assert {each["model"] for each in report["sweeps"]} == set(document["models"]) | twice
    assert [each["k"] for each in report["reliability"]] == [1, 10]
    assert [(each["by"], each["slice"]) for each in report["breakdowns"]] == [
        ("item", "all"),
        ("user", "warm"),
        ("user", "cold"),
    ]
    assert (
        report["before"]["warm"]["num_targets"]
        == whole["num_targets"] - (report["before"]["cold"]["num_targets"])
    )
    assert report["costs"]["peak_memory_bytes"] > 1e7
    assert 0 < report["costs"]["latency"]["p50_ms"] <= report["costs"]["latency"]["p95_ms"]
    assert report["facts"]["tied_share"] is None and report["facts"]["num_candidates"] == 13
    assert report["best"] and len(report["best"]) == len(report["worst"])


def test_our_sweep_at_its_own_offset_gives_the_metrics_of_validation(tiny_run: Path) -> None:
    metrics = evaluate_run(tiny_run, split="validation")["models"]
    loaded = load_run(tiny_run)
    assert loaded.split is not None
    content, asked = initial_content(loaded, open_source(loaded)), ask_validation(loaded)
    assert asked is not None
    for sweep in validation_sweeps(loaded, asked, training_popularity(loaded.split), content):
        at = sweep.as_it_is()
        model, last, _ = sweep.model.partition(NEW_LAST)
        by_score = metrics[model]["warm"]["ndcg@10"]
        # new items last: who is listed is the same, and the others stand no lower
        if last:
            assert sweep.warm_ndcg[at] >= by_score - 1e-9
        else:
            assert sweep.warm_ndcg[at] == pytest.approx(by_score)
        assert sweep.cold_hr[at] == pytest.approx(metrics[model]["cold"]["hr@10"])


class StoppedError(Exception):
    """Raised in place of the first step."""


def test_the_model_before_training_is_the_one_that_training_starts_from(
    tiny_run: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny_run import tiny_config  # at the top it would be imported before pytest's plug-in is

    started: list[dict[str, torch.Tensor]] = []

    def first_step(trained: TrainedModel, *_: Any) -> None:
        started.append({key: value.clone() for key, value in trained.model.state_dict().items()})
        raise StoppedError

    monkeypatch.setattr("mmrec.training.train.train_step", first_step)
    with pytest.raises(StoppedError):
        train(tiny_config(), tiny_data, tmp_path / "run")
    fresh = untrained(load_run(tiny_run))
    assert fresh is not None
    for name, value in fresh.model.state_dict().items():
        assert torch.equal(value, started[0][name]), name


def test_lost_weights_leave_out_the_untrained_model_only(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise WeightsError("weights minilm: not installed")

    monkeypatch.setattr("mmrec.evaluation.ablation.assemble", lost)
    assert untrained(load_run(tiny_run)) is None


def test_a_model_of_ids_gets_a_report_too(tiny_run_id: Path) -> None:
    evaluate_run(tiny_run_id)
    report = json.loads((tiny_run_id / "report.json").read_text(encoding="utf-8"))
    assert report["knockout"] == [] and "item embeddings" in report["lists"]["diversity_by"]
    assert report["before"]["warm"]["ndcg@10"] >= 0


def test_best_and_worst_cases_are_those_of_the_ranks(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    rank = rank_cases(VectorScorer(users, items), cases).rank
    best, worst = extreme_strips(loaded, cases, users, items, rank)
    for name, own in (("warm", slice(0, 2)), ("cold", slice(2, 4))):
        ranks = np.sort(rank[[each == name for each in cases.slice]])
        for strips, wanted in ((best, ranks[:2]), (worst, ranks[::-1][:2])):
            notes = [strip.note for strip in strips[own]]
            assert notes == [f"{name} target at rank {value:,.4g} of 13" for value in wanted]
    place = best[0].recommended.index(best[0].targets[0]) + 1
    assert f"rank {place} of" in best[0].note and not best[0].cold


def test_evaluating_validation_leaves_the_test_files_alone(tiny_run: Path) -> None:
    document = evaluate_run(tiny_run, split="validation")
    assert document["protocol"]["targets"] == "validation"
    assert (tiny_run / "metrics-validation.json").is_file()


def test_all_modalities_give_the_stored_content(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    source = open_source(loaded)
    assert source is not None and loaded.content is not None
    names = frozenset(loaded.parts)
    whole, alone = content_of_subsets(loaded, source, [names, frozenset({"text"})])
    torch.testing.assert_close(whole, loaded.content, atol=1e-5, rtol=0)
    assert not torch.allclose(whole, alone, atol=1e-3)


def test_knock_out_has_a_row_for_each_modality(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    source = open_source(loaded)
    assert source is not None
    rows = knock_out(loaded, source, cases, training_popularity(loaded.split))
    names = [row.name for row in rows]
    assert names[0] == "all media"
    assert {"without audio", "without image", "without text", "image alone"} <= set(names)


def test_the_only_modality_is_left_out_too(tiny_data: Path, tmp_path: Path) -> None:
    """What is left says what the medium is worth: popularity on known items, chance on new ones."""
    config = configure("content", max_steps=4)
    alone = {"encoders": {"text": config.encoders["text"].model_dump(mode="json")}}
    train(parse_config(config.model_dump(mode="json") | alone), tiny_data, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    source = open_source(loaded)
    assert source is not None
    whole, without = knock_out(loaded, source, cases, training_popularity(loaded.split))
    assert (whole.name, without.name) == ("all media", "without text")
    assert whole.ndcg["warm"] != without.ndcg["warm"]
    (nothing,) = content_of_subsets(loaded, source, [frozenset()])
    new = np.setdiff1d(np.arange(len(nothing)), loaded.item_index_of)
    assert torch.equal(
        nothing[new], nothing[new[:1]].expand(len(new), -1)
    )  # nothing tells them apart
    assert torch.isfinite(nothing).all()


def test_some_users_are_asked_all_of_their_cases(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users = np.unique(cases.user_index)
    assert of_some_users(cases, len(users)) is cases
    some = of_some_users(cases, 3)
    chosen = np.unique(some.user_index)
    assert chosen.tolist() == [users[0], users[(len(users) - 1) // 2], users[-1]]
    assert len(some) == np.isin(cases.user_index, chosen).sum()


def test_strips_show_nothing_the_user_has_met(tiny_run: Path) -> None:
    loaded = load_run(tiny_run)
    assert loaded.data is not None and loaded.split is not None
    cases = load_cases(loaded.data, loaded.split, "test")
    users, items = case_vectors(loaded.model, cases, loaded.content, loaded.item_index_of)
    strips = even_strips(loaded, cases, users, items)
    assert len(strips) == 6
    cold = set(cases.candidates[cases.candidate_is_cold].tolist())
    for strip in strips:
        row = loaded.data.user_ids.index(strip.user_id)
        history = loaded.split.full.read(row).item_index.tolist()
        seen = set(history) - set(strip.targets)
        assert not seen & set(strip.recommended)
        assert set(strip.cold) <= cold


@pytest.mark.parametrize("kind", ["tiny_run_cut", "tiny_run_all"])
def test_content_knn_of_trained_encoders_uses_untrained_ones(
    kind: str, tiny_data: Path, request: pytest.FixtureRequest
) -> None:
    loaded = load_run(request.getfixturevalue(kind))
    source = open_source(loaded)
    content = initial_content(loaded, source)
    assert content is not None
    assert content.vectors.shape[0] == len(PreparedData.open(tiny_data).items)
    assert bool(torch.isfinite(content.vectors).all())
    again = initial_content(loaded, source)
    assert again is not None
    np.testing.assert_array_equal(content.vectors.numpy(), again.vectors.numpy())
