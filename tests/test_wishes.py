"""What a request asks of its list: hard wishes are never broken, soft ones move it one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.catalogue import AttributeSpec
from mmrec.cli import main
from mmrec.errors import UserError
from mmrec.recommender import Recommendation, Recommender, Wishes
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.filters import Condition, all_hold
from mmrec.retrieval.preferences import Preference
from mmrec.retrieval.wishes import MaxPer

pytest_plugins = ["tiny_run"]

SPECS = {
    "price": AttributeSpec(type="number"),
    "artist": AttributeSpec(type="category"),
    "genre": AttributeSpec(type="set"),
}
EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def attributes(num_items: int) -> ItemAttributes:
    """Of the tiny catalogue; the first item has none."""
    known: list[dict[str, Any]] = [
        {
            "price": 5 * (n * 7 % 11),
            "artist": "xyz"[n % 3],
            "genre": ["rock", "pop", "jazz"][: n % 4],
        }
        for n in range(1, num_items)
    ]
    return ItemAttributes.of([{}, *known], SPECS)


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    """The tiny run, whose items have attributes and whose users may meet them again."""
    retriever = Recommender.load(tiny_run).retriever
    found = attributes(len(retriever.items.item_ids))
    items = replace(retriever.items, read_attributes=lambda: found)
    catalogue = retriever.catalogue.model_copy(update={"repeats": "allow"})
    return Recommender(replace(retriever, items=items, catalogue=catalogue))


def ids(found: list[Recommendation]) -> list[str]:
    return [each.item_id for each in found]


CONDITIONS = st.one_of(
    st.integers(-5, 60).map(lambda price: Condition("price", maximum=price)),
    st.integers(-5, 60).map(lambda price: Condition("price", minimum=price)),
    st.sets(st.sampled_from("xyz"), min_size=1).map(lambda a: Condition("artist", none_of=(*a,))),
    st.sets(st.sampled_from(["rock", "pop"]), min_size=1).map(
        lambda genres: Condition("genre", any_of=(*genres,))
    ),
)
PREFERENCES = st.one_of(
    st.builds(Preference, st.just("price"), less=st.booleans(), strength=st.floats(0.1, 5)),
    st.builds(
        Preference,
        st.just("genre"),
        values=st.just(("jazz",)),
        less=st.booleans(),
        strength=st.floats(0.1, 5),
    ),
)
WISHES = st.builds(
    Wishes,
    where=st.lists(CONDITIONS, max_size=2).map(tuple),
    without=st.lists(st.sampled_from([f"i{n}" for n in range(14)]), max_size=4).map(tuple),
    at_least=st.none() | st.floats(-1, 1),
    prefer=st.lists(PREFERENCES, max_size=2).map(tuple),
    unmet=st.booleans(),
    diversity=st.just(0.0) | st.floats(0, 1),
    diversify_by=st.sampled_from(["mmr", "dpp"]),
    max_per=st.lists(
        st.builds(MaxPer, st.sampled_from(["artist", "genre"]), st.integers(1, 3)), max_size=1
    ).map(tuple),
)


@EXAMPLES
@given(wishes=WISHES, k=st.integers(1, 15), user=st.integers(0, 29))
def test_hard_wishes_are_never_broken(
    recommender: Recommender, wishes: Wishes, k: int, user: int
) -> None:
    items = recommender.retriever.items
    found = recommender.recommend(f"u{user}", k=k, wishes=wishes)
    rows = [items.rows[each.item_id] for each in found]
    held = all_hold(wishes.where, items.attributes)
    assert held[rows].all() and not set(ids(found)) & set(wishes.without)
    assert [each.rank for each in found] == list(range(1, len(found) + 1))
    assert len(set(ids(found))) == len(found) <= k
    scores = [each.score for each in found]
    if wishes.at_least is not None:
        assert all(score >= wishes.at_least for score in scores)
    if not wishes.diversity:
        assert scores == sorted(scores, reverse=True)
    for limit in wishes.max_per:
        shown = [word for row in rows for word in items.attributes.words[limit.field].of(row)]
        assert all(shown.count(word) <= limit.most for word in shown)
    if not wishes.max_per and wishes.at_least is None:  # K results where K exist
        candidates = items.is_candidate | (np.full(14, wishes.unmet) & items.any_medium)
        wanted = held & candidates & ~np.isin(items.item_ids, wishes.without)
        assert len(found) == min(k, int(wanted.sum()))


@EXAMPLES
@given(
    weaker=PREFERENCES,
    factor=st.floats(1, 4),
    k=st.integers(1, 12),
    where=st.lists(CONDITIONS, max_size=1).map(tuple),
)
def test_a_stronger_wish_never_gives_less(
    recommender: Recommender,
    weaker: Preference,
    factor: float,
    k: int,
    where: tuple[Condition, ...],
) -> None:
    items = recommender.retriever.items
    known = (Condition("price", minimum=-1), *where)  # the mean is that of all that is listed
    totals = []
    for prefer in ((), (weaker,), (replace(weaker, strength=weaker.strength * factor),)):
        found = recommender.recommend("u1", k=k, wishes=Wishes(where=known, prefer=prefer))
        rows = [items.rows[each.item_id] for each in found]
        has = (
            items.attributes.numbers["price"]
            if weaker.field == "price"
            else items.attributes.words["genre"].any_of(weaker.values)
        )
        totals.append(float(has[rows].sum()) * (-1 if weaker.less else 1))
    assert totals[0] <= totals[1] + 1e-6 and totals[1] <= totals[2] + 1e-6


def test_what_a_user_says_beats_what_was_learnt(recommender: Recommender) -> None:
    plain = recommender.recommend("u1", k=3)
    artists = recommender.retriever.items.attributes.words["artist"]
    rows = recommender.retriever.items.rows
    (worst,) = artists.of(rows[recommender.recommend("u1", k=20)[-1].item_id])
    wish = Preference("artist", (worst,), strength=10)
    found = recommender.recommend("u1", k=3, wishes=Wishes(prefer=(wish,)))
    assert [artists.of(rows[each.item_id]) for each in found] == [[worst]] * 3
    assert ids(found) != ids(plain)


def test_no_wishes_are_the_list_of_the_scores(recommender: Recommender) -> None:
    plain = recommender.recommend("u1", k=13)
    assert recommender.recommend("u1", k=13, wishes=Wishes()) == plain
    for varied in (Wishes(diversity=1e-9), Wishes(diversity=1e-9, diversify_by="dpp")):
        assert ids(recommender.recommend("u1", k=13, wishes=varied)) == ids(plain)
    assert ids(recommender.recommend("u1", k=13, wishes=Wishes(diversity=1.0))) != ids(plain)


def test_probabilities_are_the_softmax_over_what_may_be_listed(recommender: Recommender) -> None:
    wishes = Wishes(probabilities=True, where=(Condition("price", maximum=30),))
    found = recommender.recommend("u1", k=13, wishes=wishes)
    scores = torch.tensor([each.score for each in found])
    expected = (scores / recommender.retriever.model.temperature.detach()).softmax(0)
    assert [each.probability for each in found] == pytest.approx(expected.tolist(), abs=1e-5)
    first = recommender.recommend("u1", k=1, wishes=wishes)[0]
    assert first == found[0]  # the others count, listed or not
    popular = recommender.recommend(history=[], k=13, wishes=wishes)
    assert popular[0].probability == pytest.approx(
        popular[0].score / sum(each.score for each in popular)
    )
    assert recommender.recommend("u1", k=1)[0].probability is None


def test_similar_items_stand_beside_each(recommender: Recommender) -> None:
    wishes = Wishes(num_similar=2, where=(Condition("artist", none_of=("x",)),))
    artists = recommender.retriever.items.attributes.words["artist"]
    rows = recommender.retriever.items.rows
    for each in recommender.recommend("u1", k=3, wishes=wishes):
        expected = recommender.similar(each.item_id, k=2, wishes=Wishes(where=wishes.where))
        assert list(each.similar) == expected and len(expected) == 2
        assert all(artists.of(rows[near.item_id]) != ["x"] for near in each.similar)


def test_similar_items_keep_to_wishes(recommender: Recommender) -> None:
    wishes = Wishes(where=(Condition("price", maximum=20),), without=("i4",))
    found = recommender.similar("i5", k=14, wishes=wishes)
    prices = recommender.retriever.items.attributes.numbers["price"]
    rows = [recommender.retriever.items.rows[each.item_id] for each in found]
    assert found and (prices[rows] <= 20).all() and "i4" not in ids(found)


def test_unknown_items_that_are_not_wanted_are_told(
    recommender: Recommender, caplog: pytest.LogCaptureFixture
) -> None:
    plain = recommender.recommend("u1", k=2)
    assert recommender.recommend("u1", k=2, wishes=Wishes(without=("nowhere",))) == plain
    assert "1 items that are not to be listed are not known" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("genre=jazz", Preference("genre", ("jazz",))),
        ("genre != horror | war *2", Preference("genre", ("horror", "war"), True, 2.0)),
        ("year>", Preference("year")),
        ("price<*0.5", Preference("price", less=True, strength=0.5)),
    ],
)
def test_written_preferences(text: str, expected: Preference) -> None:
    assert Preference.parse(text) == expected
    document = {"field": expected.field, "values": list(expected.values)}
    document |= {"less": expected.less, "strength": expected.strength}
    assert Preference.from_json(document) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preference.parse("price"), "preference 'price' cannot be read: write FIELD=VALUE"),
        (lambda: Preference.parse("price>20"), "preference 'price>20' cannot be read"),
        (lambda: Preference.parse("genre="), "preference 'genre=' cannot be read"),
        (lambda: Preference.parse("genre=a*much"), "'much' is no number"),
        (lambda: Preference.parse("genre=a*-1"), "strength is -1.0, give a number above 0"),
        (lambda: Preference.from_json({"field": "a", "value": 1}), "key 'value' is not known"),
        (lambda: Preference.from_json({"field": "a", "values": "b"}), "give a list of strings"),
        (lambda: Preference.from_json({"field": "a", "less": 1}), "give true or false"),
        (lambda: Preference.from_json({"field": "a", "strength": "2"}), "give a number above 0"),
        (lambda: Preference.from_json([]), "is no object with a field"),
        (lambda: MaxPer.parse("artist"), "limit 'artist' cannot be read: write FIELD=NUMBER"),
        (lambda: MaxPer.parse("artist=0"), "at most 0 of one 'artist': give 1 or more"),
        (lambda: Wishes(diversity=1.5), "diversity is 1.5: give a strength from 0 to 1"),
        (lambda: Wishes(diversity=float("nan")), "diversity is nan"),
        (lambda: Wishes(diversify_by="x"), "diversify by 'x': allowed is one of mmr, dpp"),  # type: ignore[arg-type]
        (lambda: Wishes(at_least=float("inf")), "at_least is inf: give a number"),
        (lambda: Wishes(num_similar=-1), "num_similar is -1: give 0 or more"),
    ],
)  # fmt: skip
def test_wishes_of_a_wrong_form_are_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(where=(Condition("colour", any_of=("red",)),)), "'colour' is no attribute"),
        (Wishes(prefer=(Preference("colour"),)), "'colour' is no attribute of items"),
        (Wishes(prefer=(Preference("genre"),)), "it has words, no numbers; name one: genre=VALUE"),
        (Wishes(prefer=(Preference("price", ("3",)),)), "it is a number; write price> or price<"),
        (Wishes(max_per=(MaxPer("price", 1),)), "limit of 'price': it is a number"),
        (Wishes(max_per=(MaxPer("colour", 1),)), "limit: 'colour' is no attribute"),
        (Wishes(half_life_hours=1), "no column items.available.from"),
    ],
)  # fmt: skip
def test_wishes_that_the_catalogue_cannot_fulfil_are_one_line(
    recommender: Recommender, wishes: Wishes, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        recommender.recommend("u1", wishes=wishes)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_words_of_the_commands(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(*words: str) -> list[dict[str, Any]]:
        assert main([words[0], str(tiny_run), *words[1:], "--json"]) == 0
        items: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["items"]
        return items

    plain = ask("recommend", "--user", "u1", "-k", "4")
    assert set(plain[0]) == {"rank", "item_id", "score", "title", "basis"}
    first = plain[0]["item_id"]
    assert first not in {
        each["item_id"] for each in ask("recommend", "--user", "u1", "--without", first)
    }
    least = str(plain[1]["score"] - 1e-6)
    assert ask("recommend", "--user", "u1", "--at-least", least) == plain[:2]
    asked = ask("recommend", "--user", "u1", "--probability", "--show-similar", "2", "-k", "4")
    assert [each["item_id"] for each in asked] == [each["item_id"] for each in plain]
    assert all(0 < each["probability"] <= 1 and len(each["similar"]) == 2 for each in asked)
    varied = ask("recommend", "--user", "u1", "--diversity", "1", "--diversify-by", "dpp")
    assert varied[0]["item_id"] == first
    near = ask("similar", "--item", "i1", "-k", "14")
    unwanted = [near[0]["item_id"], near[3]["item_id"]]
    found = ask("similar", "--item", "i1", "-k", "14", "--without", ",".join(unwanted))
    left = [each for each in near if each["item_id"] not in unwanted]
    assert len(left) == len(near) - 2 >= 10 and len(found) == len(left)
    for rank, (each, other) in enumerate(zip(found, left, strict=True), 1):
        assert each == {**other, "rank": rank}
    for command in (["recommend", "--user", "u1"], ["similar", "--item", "i1"]):
        for option in (["--where", "price<=20"], ["--prefer", "price<"], ["--max-per", "price=1"]):
            assert main([command[0], str(tiny_run), *command[1:], *option]) == 2
            error = capsys.readouterr().err
            assert "'price' is no attribute of items; the catalogue has none" in error
    assert main(["recommend", str(tiny_run), "--user", "u1", "--show-similar", "1"]) == 0
    assert "similar" in capsys.readouterr().out


def test_what_a_list_does_not_show_is_refused(recommender: Recommender) -> None:
    """Reasons and similar items belong to a user's list; elsewhere they are not just left out."""
    for wishes in (Wishes(why="en"), Wishes(num_similar=2)):
        for ask in (
            lambda asked: recommender.search("red", wishes=asked),
            lambda asked: recommender.recommend("u1", query="red", wishes=asked),
            lambda asked: recommender.similar("i1", wishes=asked),
            lambda asked: recommender.popular(wishes=asked),
        ):
            with pytest.raises(UserError, match="belongs to what is recommended to a user"):
                ask(wishes)
