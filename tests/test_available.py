"""Lists keep to the instants between which items may be shown, and old items fade where asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_run import CATALOGUE, NUM_ITEMS, WITHOUT_EVENTS, tiny_config, write_source

from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.config import change
from mmrec.errors import UserError
from mmrec.recommender import Recommendation, Recommender, Wishes
from mmrec.retrieval.available import ALWAYS, Available
from mmrec.training.train import train

pytest_plugins = ["tiny_run"]

START, HOUR = 1_700_000_000, 3_600
SPANS = {  # the other items may be listed at any time
    "i0": (START, None),
    "i1": (None, START + 10 * HOUR),
    "i2": (START + 4 * HOUR, START + 8 * HOUR),
    WITHOUT_EVENTS: (START + 5 * HOUR, None),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a catalogue with instants, whose users may meet items again."""
    folder = tmp_path_factory.mktemp("available")
    write_source(folder / "source")
    items = pl.read_csv(folder / "source" / "items.csv")
    spans = [SPANS.get(item, (None, None)) for item in items["id"]]
    items.with_columns(
        pl.Series("from", [first for first, _ in spans]),
        pl.Series("until", [last for _, last in spans]),
    ).write_csv(folder / "source" / "items.csv")
    described: dict[str, Any] = {**CATALOGUE, "repeats": "allow"}
    described["items"] = {**CATALOGUE["items"], "available": {"from": "from", "until": "until"}}
    (folder / "catalogue.yaml").write_text(json.dumps(described), encoding="utf-8")
    prepare(folder / "catalogue.yaml", folder / "source", folder / "data", num_workers=1)
    train(change(tiny_config(), {"training.max_steps": 2}, "test"), folder / "data", folder / "run")
    return folder / "run"


@pytest.fixture(scope="module", params=["run", "bundle"])
def recommender(request: pytest.FixtureRequest, run: Path) -> Recommender:
    if request.param == "run":
        return Recommender.load(run)
    export = run.parent / "export"
    assert main(["export", str(run), "--out", str(export), "--bundle"]) == 0
    return Recommender.load(export / "bundle")


def ids(found: list[Recommendation]) -> set[str]:
    return {each.item_id for each in found}


def everything(recommender: Recommender, at: float, **options: Any) -> list[Recommendation]:
    return recommender.recommend("u0", k=NUM_ITEMS, time=at, **options)


@pytest.mark.parametrize(
    ("hours", "absent"),
    [(-1, {"i0", "i2"}), (0, {"i2"}), (4, set()), (8, {"i2"}), (10, {"i1", "i2"})],
    ids=["before", "first-instant", "all", "last-instant", "after"],
)
def test_lists_keep_to_the_instants(recommender: Recommender, hours: int, absent: set[str]) -> None:
    whole = {f"i{number}" for number in range(NUM_ITEMS - 1)}
    assert ids(everything(recommender, START + hours * HOUR)) == whole - absent
    alike = recommender.similar("i5", k=NUM_ITEMS, time=START + hours * HOUR)
    young = {WITHOUT_EVENTS} if hours >= 5 else set()
    assert ids(alike) == (whole | young) - absent - {"i5"}


def test_without_a_time_items_must_be_available_now(recommender: Recommender) -> None:
    found = ids(recommender.recommend("u0", k=NUM_ITEMS))
    assert "i0" in found and not {"i1", "i2"} & found
    assert not {"i1", "i2"} & ids(recommender.similar("i5", k=NUM_ITEMS))


def test_odds_halve_with_every_half_life(recommender: Recommender) -> None:
    at = START + 6 * HOUR
    plain = {each.item_id: each.score for each in everything(recommender, at)}
    aged = {each.item_id: each.score for each in everything(recommender, at, half_life_hours=3)}
    tau = float(recommender.retriever.model.temperature.detach())
    odds = {item: math.exp((aged[item] - plain[item]) / tau) for item in plain}
    assert odds["i0"] == pytest.approx(1 / 4, rel=1e-3)
    assert odds["i2"] == pytest.approx(2 ** (-2 / 3), rel=1e-3)
    assert all(value == pytest.approx(1) for item, value in odds.items() if item not in SPANS)


def test_newer_ones_of_what_is_alike_come_first_where_asked(recommender: Recommender) -> None:
    at = START + 6 * HOUR
    plain = recommender.similar("i5", k=NUM_ITEMS, time=at)
    aged = recommender.similar("i5", k=NUM_ITEMS, time=at, wishes=Wishes(half_life_hours=3))
    before = {each.item_id: each.score for each in plain}
    after = {each.item_id: each.score for each in aged}
    tau = float(recommender.retriever.model.temperature.detach())
    lost = {item: before[item] - after[item] for item in before}
    assert lost["i0"] == pytest.approx(2 * math.log(2) * tau, rel=1e-3)
    assert all(lost[item] == pytest.approx(0, abs=1e-6) for item in lost if item not in SPANS)


def test_popular_items_fade_where_nothing_is_known_of_a_user(recommender: Recommender) -> None:
    at = START + 6 * HOUR
    plain = recommender.recommend(history=[], k=NUM_ITEMS, time=at)
    aged = recommender.recommend(history=[], k=NUM_ITEMS, time=at, half_life_hours=6)
    count = {each.item_id: each.score for each in plain}
    assert plain[0].basis == "popularity"
    assert {each.item_id: each.score for each in aged}["i0"] == pytest.approx(count["i0"] / 2)


def test_items_nobody_met_are_listed_where_asked(recommender: Recommender) -> None:
    at = START + 6 * HOUR
    assert WITHOUT_EVENTS not in ids(everything(recommender, at))
    found = {each.item_id: each.score for each in everything(recommender, at, unmet=True)}
    assert np.isfinite(found[WITHOUT_EVENTS])
    assert ids(everything(recommender, START, unmet=True)) == set(found) - {"i2", WITHOUT_EVENTS}
    met = everything(recommender, at)
    assert {each.item_id: each.score for each in met}.items() <= found.items()


def test_words_of_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instant = ["--at", "2023-11-15T00:13:20", "-k", str(NUM_ITEMS), "--json"]  # two hours later
    wanted = ["recommend", str(run), "--user", "u0", "--half-life", "12", "--unmet"]
    for command in (wanted, ["similar", str(run), "--item", "i5"]):
        assert main([*command, *instant]) == 0
        items = json.loads(capsys.readouterr().out)["items"]
        found = {each["item_id"] for each in items}
        assert "i0" in found and not {"i2", WITHOUT_EVENTS} & found
    assert main([*wanted[:4], "--half-life", "-1"]) == 2
    assert "half-life is -1 hours" in capsys.readouterr().err


def test_half_life_needs_instants_to_count_from(tiny_run: Path) -> None:
    with pytest.raises(UserError, match=r"no column items\.available\.from"):
        Recommender.load(tiny_run).recommend("u0", half_life_hours=1)


def test_age_that_is_not_known_or_to_come_is_none() -> None:
    start = np.array([ALWAYS, START - HOUR, START + HOUR])
    available = Available(start, np.full(3, np.iinfo(np.int64).max))
    np.testing.assert_allclose(available.half_lives(START, 0.5), [0, 2, 0])
    assert available.at(START).tolist() == [True, True, False]
