"""Users held out of training: nothing of theirs is known, and the more is told the better."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_tables import write_tables
from tiny_run import tiny_config

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.new_users import KnownUsersSplit
from mmrec.data.thinning import open_split
from mmrec.errors import ConfigError
from mmrec.evaluation import new_users
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.new_users import NUM_TARGETS, new_user_figures, new_user_targets
from mmrec.evaluation.protocol import cases_of, load_cases, training_popularity
from mmrec.evaluation.schemas import ReportDocument
from mmrec.loaded import load_run
from mmrec.training.take_over import StartRun
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
pytestmark = pytest.mark.usefixtures("restored_torch")
SHARE = 0.4
NUM_GROUPS, GROUP_SIZE, NUM_USERS, LENGTH = 4, 6, 300, 12
LIKED = 0.7  # of a user's events are of his group


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> PreparedData:
    return PreparedData.open(tiny_data)


@pytest.fixture(scope="module")
def split(data: PreparedData) -> KnownUsersSplit:
    found = open_split(data, None, 1.0, SHARE)
    assert isinstance(found, KnownUsersSplit)
    return found


def without_users(**evaluation: Any) -> Config:
    document = tiny_config("id").model_dump(mode="json")
    document["data"]["new_users"] = SHARE
    document["evaluation"] |= evaluation
    return parse_config(document)


def test_nothing_of_new_users_is_trained_on_counted_or_a_target(
    data: PreparedData, split: KnownUsersSplit
) -> None:
    halves = [split.new_users(which) for which in ("validation", "test")]
    everybody = np.concatenate(halves)
    assert all(len(half) > 2 for half in halves)
    assert len(np.unique(everybody)) == len(everybody) == split.is_new.sum() < len(data.user_ids)

    whole = data.split(None)
    known = [whole.train.read(row) for row in range(len(whole.train))]
    known = [each for each in known if each.user_index not in everybody]
    counts = np.bincount(np.concatenate([e.item_index for e in known]), minlength=len(data.items))
    assert training_popularity(split).tolist() == counts.tolist()
    assembly = assemble(without_users(), data.path)
    histories = assembly.stream.histories
    read = [histories.read(row) for row in range(len(histories.lengths))]  # type: ignore[union-attr]
    assert [each.user_index for each in read] == [each.user_index for each in known]
    assert [each.item_index.tolist() for each in read] == [e.item_index.tolist() for e in known]
    assert histories.lengths.tolist() == [len(e.item_index) for e in known]  # type: ignore[union-attr]
    assert assembly.model.counts.tolist() == counts[counts > 0].tolist()
    assert assembly.validation is not None
    for which in ("validation", "test"):
        assert not np.isin(load_cases(data, split, which).user_index, everybody).any()
    assert not np.isin(assembly.validation.user_index, everybody).any()
    again = pickle.loads(pickle.dumps((split, split.train)))  # as a worker gets them
    for each in (again[0].train, again[1]):
        assert each.read(3).item_index.tolist() == known[3].item_index.tolist()


def test_users_are_asked_the_same_whatever_is_known(
    data: PreparedData, split: KnownUsersSplit
) -> None:
    table = new_user_targets(data, split, "test", 3)
    numbers = (0, 1, 3)
    asked = [cases_of(data, split, table, "test", first_events=n) for n in numbers]
    row_of = {int(user): row for row, user in enumerate(split.full.user_index)}
    is_cold = split.items.sort("item_index")["role"].str.starts_with("cold").to_numpy()
    for cases, n in zip(asked, numbers, strict=True):
        assert set(cases.slice) == {"new_users"}
        assert set(cases.user_index) <= set(split.new_users("test"))
        for part in ("targets", "seen"):
            own, first = getattr(cases, part), getattr(asked[0], part)
            assert own.values.tolist() == first.values.tolist()
        for row, user in enumerate(cases.user_index):
            items = split.full.read(row_of[int(user)]).item_index
            warm = items[~is_cold[items]].tolist()
            assert cases.history[row].tolist() == warm[:n]
            assert cases.targets[row].tolist() == warm[3 : 3 + NUM_TARGETS]


def test_baselines_know_nothing_of_new_users_and_figures_are_kept(
    data: PreparedData, split: KnownUsersSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[dict[str, Any]] = []
    fit = new_users.fit_baselines

    def watched(names: Any, cases: Any, **given: Any) -> Any:
        fitted.append(given)
        return fit(names, cases, **given)

    monkeypatch.setattr(new_users, "fit_baselines", watched)
    run = tmp_path / "run"
    train(without_users(), data.path, run)
    document = evaluate_run(run, split="validation", overrides=["evaluation.first_events=[3,0]"])
    found = document["new_users"]
    assert found["first_events"] == [0, 3] and found["num_users"] > 2
    assert document["protocol"]["new_users"] == SHARE
    for points in found["models"].values():
        assert [point["events"] for point in points] == [0, 3]
        for point in points:
            low, high = point["interval"]
            assert low <= point["ndcg@10"] <= high
    assert {"mmrec", "popularity", "item_knn", "ease"} <= found["models"].keys()
    flat = [point["ndcg@10"] for point in found["models"]["popularity"]]
    assert flat[0] == flat[1]  # it does not look at who asks
    counts = training_popularity(split)
    for given in fitted:  # to training alone, not to what new users are known by
        assert not np.isin(given["train_users"], np.flatnonzero(split.is_new)).any()
        met = np.bincount(given["inputs"].values, minlength=len(counts))
        assert met.tolist() == counts.tolist()

    assert json.loads((run / "metrics-validation.json").read_text())["new_users"] == found


@pytest.mark.slow
def test_the_report_draws_the_curve(data: PreparedData, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(without_users(), data.path, run)
    found = evaluate_run(run)["new_users"]
    assert found["first_events"] == [0, 1, 3, 5]
    report = ReportDocument.model_validate_json((run / "report.json").read_text())
    assert report.new_users == found
    page = (run / "report.html").read_text()
    assert "were held out of training wholly" in page
    assert "NDCG@10 of every model by the number of events known of a new user" in page


def test_users_and_events_are_not_both_left_out() -> None:
    document = tiny_config("id").model_dump(mode="json")
    document["data"] |= {"new_users": 0.1, "event_share": 0.5}
    with pytest.raises(ConfigError, match="data.new_users is 0.1 and data.event_share 0.5"):
        parse_config(document)


def test_a_start_from_a_run_that_met_them_is_told(
    data: PreparedData, split: KnownUsersSplit, tiny_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    StartRun.open(tiny_run).warn_of_met(data, split)
    assert "met users whom 0.4 holds out; figures of new users will be too good" in caplog.text


def a_world(folder: Path, *, profile_matters: bool) -> Path:
    """Users who like a group of items, which their region names or does not."""
    random = np.random.default_rng(0)
    liked = random.integers(NUM_GROUPS, size=NUM_USERS)
    other = random.integers(NUM_GROUPS, size=(NUM_USERS, LENGTH))
    group = np.where(random.random((NUM_USERS, LENGTH)) < LIKED, liked[:, None], other)
    item = group * GROUP_SIZE + random.integers(GROUP_SIZE, size=group.shape)
    users = np.repeat(np.arange(NUM_USERS), LENGTH)
    log = {"user": users, "item": item.ravel(), "at": np.tile(np.arange(LENGTH), NUM_USERS)}
    region = liked if profile_matters else random.integers(NUM_GROUPS, size=NUM_USERS)
    names = [f"region {each}" for each in region]
    items = np.arange(NUM_GROUPS * GROUP_SIZE)
    titles = [f"item {each}" for each in items]
    catalogue = write_tables(
        folder,
        items=pl.DataFrame({"id": items, "title": titles}),
        log=pl.DataFrame(log),
        users=pl.DataFrame({"user": np.arange(NUM_USERS), "region": names}),
        catalogue={
            "name": "regions",
            "kind": "music",
            "users": {"attributes": {"region": {"type": "category"}}},
            "interactions": {"order": "at"},
        },
    )
    prepare(catalogue, folder, folder / "data", num_workers=1)
    return folder / "data"


@pytest.mark.parametrize("profile_matters", [True, False], ids=["matters", "does-not"])
def test_the_curve_rises_and_a_profile_gives_what_it_says(
    tmp_path: Path, profile_matters: bool
) -> None:
    config = parse_config(
        {
            "data": {"max_history": 16, "new_users": 0.4},
            "model": {
                "item": "id",
                "width": 16,
                "history": {"num_blocks": 1, "num_heads": 2, "dropout": 0.0, "start": True},
                "signals": {"users": True},
            },
            "training": {
                "max_epochs": 7,
                "batch_size": 16,
                "learning_rate": 0.01,
                "warmup_steps": 5,
                "precision": "fp32",
            },
            "evaluation": {"baselines": ["popularity", "item_knn", "ease"]},
        }
    )
    train(config, a_world(tmp_path / "world", profile_matters=profile_matters), tmp_path / "run")
    found = new_user_figures(load_run(tmp_path / "run"), "test")
    assert found["num_users"] > 40 and found["num_targets"] > 3 * found["num_users"]
    curve = [point["ndcg@10"] for point in found["models"]["mmrec"]]
    nothing_known, *_, most_known = found["gain"]
    assert most_known["interval"][0] > 0
    if profile_matters:
        assert all(each["interval"][0] > 0.1 for each in found["gain"])
    else:
        low, high = nothing_known["interval"]
        assert low < 0 < high
        assert curve[0] + 0.05 < min(curve[1:])
