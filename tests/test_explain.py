"""Why an item is listed: faithful to what the score loses, of the user's own events alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tiny_run import NUM_USERS
from torch import Tensor

from data_prep.catalogue import AttributeSpec
from data_prep.prepare import prepare
from mmrec.cli import main
from mmrec.errors import ItemNotFound, UserError
from mmrec.recommender import Recommender, Wishes
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.bundle import write_bundle
from mmrec.retrieval.explain import event_drops, explain

pytest_plugins = ["tiny_run"]

EXACT = 1e-5
MEDIA = {"text": ("title", "plot"), "image": ("poster",), "audio": ("sound",)}


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    """The tiny run, with a genre for each item but the first."""
    retriever = Recommender.load(tiny_run).retriever
    genres = [{}, *({"genre": ["pop", "ro" + "ck" * (n % 2)]} for n in range(1, 14))]
    attributes = ItemAttributes.of(genres, {"genre": AttributeSpec(type="set")})
    items = replace(retriever.items, read_attributes=lambda: attributes)
    return Recommender(replace(retriever, items=items))


def history_of(recommender: Recommender, user: int) -> list[str]:
    items = recommender.retriever.items
    return [items.item_ids[row] for row in recommender.retriever.stored_user(user).history]


def scores_of(recommender: Recommender, history: list[str]) -> dict[str, float]:
    """Every candidate's score, by the list that a user would see."""
    catalogue = recommender.retriever.catalogue.model_copy(update={"repeats": "allow"})
    anew = Recommender(replace(recommender.retriever, catalogue=catalogue))
    return {each.item_id: each.score for each in anew.recommend(history=history, k=100)}


def test_drops_are_what_lists_lose(recommender: Recommender) -> None:
    history = history_of(recommender, 3)[-5:]
    whole = scores_of(recommender, history)
    rows = np.array([recommender.retriever.items.rows[item] for item in whole])
    asked = recommender.retriever.given_user(history)
    first, drops = event_drops(recommender.retriever, asked, rows)
    assert first == 0 and drops.shape == (len(whole), len(history))
    for place in range(len(history)):
        without = scores_of(recommender, history[:place] + history[place + 1 :])
        expected = [whole[item] - without[item] for item in whole]
        np.testing.assert_allclose(drops[:, place], expected, atol=1e-5)


def test_removing_what_is_named_lowers_the_score_more_than_removing_another(
    recommender: Recommender,
) -> None:
    """The deletion test, by lists that are made anew, over more than 200 cases."""
    random = np.random.default_rng(0)
    named, others = [], []
    for user in range(30):
        history = history_of(recommender, user)[-8:]  # what the model reads
        whole = scores_of(recommender, history)
        left_out = [
            scores_of(recommender, history[:place] + history[place + 1 :])
            for place in range(len(history))
        ]
        items = list(whole)
        for item, why in zip(items, recommender.explain(items, history=history), strict=True):
            if why.events:
                place = len(history) - 1 - why.events[0].ago
                assert history[place] == why.events[0].item_id
                named.append(whole[item] - left_out[place][item])
                assert named[-1] == pytest.approx(why.events[0].drop, abs=1e-5)
                others.append(whole[item] - left_out[random.integers(len(history))][item])
    assert len(named) >= 200 and np.mean(named) > np.mean(others) + 0.01


@pytest.fixture
def without(
    tiny_source: Path, tiny_data: Path, tiny_run: Path, tmp_path: Path
) -> dict[str, Tensor]:
    """By modality, what the run holds of items in a catalogue that has lost it: (N, D + 1)."""
    found = {}
    for name, columns in MEDIA.items():
        folder = tmp_path / name
        shutil.copytree(tiny_source, folder / "source")
        shutil.copytree(tiny_data, folder / "data")
        catalogue = shutil.copy(tiny_source.parent / "catalogue.yaml", folder)
        table = pl.read_csv(tiny_source / "items.csv", infer_schema=False)
        table.with_columns(pl.lit("").alias(column) for column in columns).write_csv(
            folder / "source" / "items.csv"
        )
        prepare(Path(catalogue), folder / "source", folder / "data", num_workers=1, update=True)
        lost = Recommender.load(tiny_run, data=folder / "data").retriever
        assert not lost.items.has[name].any()
        found[name] = lost.item_side
    return found


def test_losing_the_medium_that_is_named_lowers_the_score_more_than_losing_another(
    recommender: Recommender, without: dict[str, Tensor]
) -> None:
    """The deletion test by catalogues that were updated, every user with every item: 420 cases."""
    random = np.random.default_rng(0)
    items = recommender.retriever.items
    named, others = [], []
    for user in range(NUM_USERS):
        vector = recommender.retriever.user_vectors([recommender.retriever.stored_user(user)])[0]
        asked = torch.cat([vector, vector.new_ones(1)])
        for why in recommender.explain(items.item_ids, f"u{user}"):
            row = items.rows[why.item_id]
            own = [name for name in why.parts if name != "users"]  # by what they give
            lost = [why.score - float(without[name][row] @ asked) for name in own]
            assert [why.parts[name].drop for name in own] == pytest.approx(lost, abs=EXACT)
            assert sorted(own) == sorted(items.modalities(row))
            named.append(lost[0])
            others.append(lost[random.integers(len(lost))])
    assert len(named) == 420 and np.mean(named) > np.mean(others) + 0.01


def test_only_events_of_the_user_that_lower_the_score_are_named(recommender: Recommender) -> None:
    for user in range(10):
        history = history_of(recommender, user)
        for each in recommender.recommend(f"u{user}", k=5, wishes=Wishes(why="en")):
            assert each.why is not None and each.why.item_id == each.item_id
            assert each.why.score == pytest.approx(each.score, abs=1e-6)
            drops = [event.drop for event in each.why.events]
            assert drops == sorted(drops, reverse=True) and all(drop > 0 for drop in drops)
            for event in each.why.events:
                assert history[len(history) - 1 - event.ago] == event.item_id


def test_parts_lose_what_the_item_would_without_them(
    recommender: Recommender, tiny_source: Path, tmp_path: Path
) -> None:
    """Of an item that nobody met, which is its content, beside new items that lack a medium."""
    table = pl.read_csv(tiny_source / "items.csv", infer_schema=False).filter(pl.col("id") == "i13")
    helped = 0
    for number in range(8):
        history = history_of(recommender, number)
        user = recommender.embed_users([history])[0]

        def score(*lacking: str, user: np.ndarray = user) -> float:
            path = tmp_path / "new.csv"
            table.drop(lacking).write_csv(path)
            content = recommender.embed_items(recommender.new_items(path, tiny_source)).embedding
            popularity = recommender.retriever.popularity_of_new(torch.from_numpy(content))
            return float(content[0] @ user + popularity[0].item())

        (why,) = recommender.explain(["i13"], history=history)
        assert set(why.parts) == {*MEDIA, "users"} and why.parts["users"].drop == 0
        assert why.score == pytest.approx(score(), abs=EXACT)
        for name, columns in MEDIA.items():
            assert why.parts[name].drop == pytest.approx(score() - score(*columns), abs=EXACT)
        shares = [part.share for part in why.parts.values()]
        any_helps = any(part.drop > 0 for part in why.parts.values())
        assert sum(shares) == pytest.approx(float(any_helps)) and shares == sorted(
            shares, reverse=True
        )
        helped += any_helps
    assert helped


def test_words_name_events_shared_words_and_media(recommender: Recommender) -> None:
    (item,) = recommender.recommend("u3", k=1)
    (english,) = recommender.explain([item.item_id], "u3")
    (chinese,) = recommender.explain([item.item_id], "u3", language="zh")
    assert replace(english, words="") == replace(chinese, words="")
    event = english.events[0]
    assert event.shared["genre"] and "pop" in event.shared["genre"]
    assert english.words.startswith(f"Because you met '{event.title or event.item_id}' (genre: ")
    assert "; told by " in english.words and "%" in english.words
    assert chinese.words.startswith(f"因为您接触过“{event.title or event.item_id}”(genre:")
    assert chinese.words.endswith("。") and "依据:" in chinese.words


def test_without_a_history_nothing_is_claimed(recommender: Recommender) -> None:
    found = recommender.recommend(history=[], k=1, wishes=Wishes(why="en"))[0]
    assert found.why is not None and found.why.events == ()
    assert found.why.words == f"Met {found.score:,.0f} times by others."
    liked = recommender.recommend(taste="red river", k=1, wishes=Wishes(why="zh"))[0]
    assert liked.why is not None and liked.why.words.startswith("因为您说的喜好")


def test_a_bundle_explains_alike(recommender: Recommender, tmp_path: Path) -> None:
    run = Recommender.load(recommender.retriever.path)
    write_bundle(run.retriever, tmp_path / "bundle")
    bundle = Recommender.load(tmp_path / "bundle")
    ours, theirs = run.explain(["i1", "i2"], "u4"), bundle.explain(["i1", "i2"], "u4")
    assert [each.words for each in theirs] == [each.words for each in ours]
    for a, b in zip(ours, theirs, strict=True):
        assert {n: p.drop for n, p in a.parts.items()} == pytest.approx(
            {n: p.drop for n, p in b.parts.items()}, abs=1e-5
        )


def test_a_model_of_ids_names_events(tiny_run_id: Path) -> None:
    found = Recommender.load(tiny_run_id).recommend("u1", k=3, wishes=Wishes(why="en"))
    assert any(each.why and each.why.events for each in found)
    assert all(each.why is not None and not each.why.parts for each in found)


def test_what_cannot_be_explained_is_one_line(recommender: Recommender) -> None:
    with pytest.raises(UserError, match="words in 'fr': allowed is one of en, zh"):
        recommender.explain(["i1"], "u1", language="fr")  # type: ignore[arg-type]
    with pytest.raises(ItemNotFound, match="item 'x' is not in the catalogue"):
        recommender.explain(["x"], "u1")
    empty = np.zeros(0, np.int64)
    asked = recommender.retriever.stored_user(0)
    assert explain(recommender.retriever, asked, empty, basis="history") == []


def test_words_of_the_command(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recommend", str(tiny_run), "--user", "u1", "-k", "3", "--why", "en"]
    assert main([*words, "--json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert all(each["why"]["words"] and "parts" in each["why"] for each in items)
    assert main(words) == 0
    assert items[0]["why"]["words"] in capsys.readouterr().out
    assert main([*words[:-1], "fr"]) == 2
    assert "words in 'fr'" in capsys.readouterr().err
