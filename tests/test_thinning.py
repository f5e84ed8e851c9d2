"""A share of the events: nested, two a user at least, and one world for model and baselines."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards import History, PreparedData, Split
from mmrec.build import assemble
from mmrec.config import Config, parse_config
from mmrec.data.ragged import Ragged
from mmrec.data.thinning import PLACES, ThinnedSplit, open_split
from mmrec.errors import ConfigError
from mmrec.evaluation import command
from mmrec.evaluation.command import evaluate_run
from mmrec.evaluation.protocol import load_cases, training_histories, training_popularity
from mmrec.loaded import load_run
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]
SHARES = (0.05, 0.3, 0.6, 0.9)


def with_share(share: float) -> Config:
    from tiny_run import tiny_config

    document = tiny_config("id").model_dump(mode="json")
    document["data"]["event_share"] = share
    return parse_config(document)


@pytest.fixture(scope="module")
def data(tiny_data: Path) -> PreparedData:
    return PreparedData.open(tiny_data)


@pytest.fixture(scope="module")
def whole(data: PreparedData) -> Split:
    return data.split(None)


def thin(data: PreparedData, share: float) -> ThinnedSplit:
    split = open_split(data, None, share)
    assert isinstance(split, ThinnedSplit)
    return split


def of_many_events(user_index: int, num_events: int, num_items: int = 14) -> History:
    items = np.random.default_rng(user_index).integers(num_items, size=num_events)
    return History(user_index, items.astype(np.int64), None, None, None, None)


def test_a_smaller_share_lies_within_a_larger_one(data: PreparedData, whole: Split) -> None:
    known = [training_histories(thin(data, share)) for share in SHARES]
    known.append(training_histories(whole))
    for small, large in zip(known[:-1], known[1:], strict=True):
        assert len(small) == len(large) == len(whole.train)
        for row in range(len(small)):
            larger = large[row].tolist()
            assert [item for item in larger if item in set(small[row].tolist())] == (
                small[row].tolist()
            )
    sizes = [len(each.values) for each in known]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] < sizes[-1]


def test_every_user_keeps_two_training_events_where_he_has_them(
    data: PreparedData, whole: Split
) -> None:
    lengths = thin(data, 1e-6).train.lengths
    assert lengths.tolist() == np.minimum(whole.train.lengths, 2).tolist()


def test_the_share_is_kept_and_the_same_item_again_is_another_event(data: PreparedData) -> None:
    split = thin(data, 0.3)
    plain = np.flatnonzero(split._limit == int(0.3 * PLACES))  # two of their events lie below it
    rates = [split.knows(of_many_events(int(user), 400)).mean() for user in plain]
    assert 5 < len(plain) < 30 and np.mean(rates) == pytest.approx(0.3, abs=0.03)
    again = of_many_events(0, 400, num_items=1)
    assert 0 < split.knows(again).sum() < 400


def test_a_start_of_a_history_is_known_alike(data: PreparedData) -> None:
    split, history = thin(data, 0.5), of_many_events(3, 200)
    start = replace(history, item_index=history.item_index[:70])
    assert (split.knows(start) == split.knows(history)[:70]).all()


def test_counts_are_of_known_events(data: PreparedData) -> None:
    split = thin(data, 0.4)
    known = training_histories(split)
    expected = np.bincount(known.values, minlength=len(data.items))
    assert training_popularity(split).tolist() == expected.tolist()
    assembly = assemble(with_share(0.4), data.path)
    assert assembly.popularity.tolist() == expected.tolist()
    assert assembly.model.counts.tolist() == expected[expected > 0].tolist()
    read = [assembly.stream.histories.read(row) for row in range(len(known))]
    assert [each.item_index.tolist() for each in read] == [row.tolist() for row in known]  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps((split, split.train)))  # as a worker gets them
    for each in (again[0].train, again[1]):
        assert each.read(5).item_index.tolist() == known[5].tolist()


def test_every_column_of_a_history_is_thinned_alike(data: PreparedData) -> None:
    from mmrec.data.thinning import _some_events

    numbers = np.arange(5)
    history = History(
        user_index=1,
        item_index=numbers,
        time=numbers + 100,
        event=numbers.astype(np.int16),
        value=numbers.astype(np.float32) / 2,
        context={"device": list("abcde")},
    )
    some = _some_events(history, np.array([0, 3]))
    assert some.item_index.tolist() == [0, 3] and some.time is not None and some.value is not None
    assert some.time.tolist() == [100, 103] and some.value.tolist() == [0.0, 1.5]
    assert some.event is not None and some.event.tolist() == [0, 3]
    assert some.context == {"device": ["a", "d"]}


@pytest.mark.parametrize("which", ["validation", "test"])
def test_the_questions_stay_and_the_inputs_are_thinned(
    data: PreparedData, whole: Split, which: Any
) -> None:
    split = thin(data, 0.4)
    asked, thinned = load_cases(data, whole, which), load_cases(data, split, which)
    for name in ("user_index", "candidates", "candidate_is_cold"):
        assert (getattr(asked, name) == getattr(thinned, name)).all()
    for name in ("targets", "seen"):
        ours, theirs = getattr(thinned, name), getattr(asked, name)
        assert (ours.values == theirs.values).all() and (ours.offsets == theirs.offsets).all()
    assert asked.slice == thinned.slice
    assert 0 < len(thinned.history.values) < len(asked.history.values)
    known = {
        int(user): set(split.train.read(row).item_index.tolist())
        for row, user in enumerate(split.train.user_index)
    }
    trained = {
        int(user): set(whole.train.read(row).item_index.tolist())
        for row, user in enumerate(whole.train.user_index)
    }
    for row, user in enumerate(thinned.user_index.tolist()):
        own = thinned.history[row].tolist()
        assert [i for i in asked.history[row].tolist() if i in set(own)] == own
        # of what was there to train on, just what training knows of
        assert set(own) & trained[user] == known[user] & set(asked.history[row].tolist())


def test_the_baselines_are_fitted_to_what_the_model_knows(
    tiny_data: Path, data: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(with_share(0.4), tiny_data, tmp_path / "run")
    fitted: list[tuple[Ragged, Any]] = []
    fit = command.fit_baselines

    def watched(names: Any, cases: Any, *, train: Ragged, **options: Any) -> Any:
        fitted.append((train, cases))
        return fit(names, cases, train=train, **options)

    monkeypatch.setattr(command, "fit_baselines", watched)
    document = evaluate_run(tmp_path / "run")
    split = thin(data, 0.4)
    known, cases = training_histories(split), load_cases(data, split, "test")
    assert fitted and fitted[0][0].values.tolist() == known.values.tolist()
    assert fitted[0][1].history.values.tolist() == cases.history.values.tolist()
    for train_histories, _ in fitted:  # the sweep on validation has them too
        assert train_histories.values.tolist() == known.values.tolist()

    assert document["event_share"] == document["protocol"]["event_share"] == 0.4
    assert json.loads((tmp_path / "run" / "data.json").read_text())["event_share"] == 0.4
    assert load_run(tmp_path / "run").split.train.lengths.sum() == len(known.values)  # type: ignore[union-attr]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["protocol"] == document["protocol"]


def test_figures_of_two_shares_carry_two_protocols(data: PreparedData) -> None:
    from mmrec.evaluation.protocol import protocol_document

    hashes = {
        protocol_document(open_split(data, None, share), "test", repeats="forbid")["hash"]
        for share in (0.2, 0.4, 1.0)
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("share", [0, -0.5, 1.5, "some"])
def test_bad_shares_are_refused(share: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.event_share") as caught:
        with_share(share)
    assert "\n" not in str(caught.value)
