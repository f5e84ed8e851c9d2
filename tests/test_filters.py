"""Hard conditions on attributes: how they are written, what they hold for, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.catalogue import AttributeSpec
from mmrec.errors import UserError
from mmrec.retrieval.attributes import ItemAttributes
from mmrec.retrieval.filters import Condition, all_hold

SPECS = {
    "price": AttributeSpec(type="number"),
    "artist": AttributeSpec(type="category"),
    "genre": AttributeSpec(type="set"),
}
ITEMS: list[Mapping[str, Any]] = [
    {"price": 20, "artist": "X", "genre": ["rock", "pop"]},
    {"price": 19.5, "artist": "Y", "genre": ["jazz"]},
    {"price": 30, "artist": "Y", "genre": ["pop", "pop"]},
    {},
]
ATTRIBUTES = ItemAttributes.of(ITEMS, SPECS)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("price<=20", [1, 1, 0, 0]),
        ("price < 20", [0, 1, 0, 0]),
        ("price>=20", [1, 0, 1, 0]),
        ("price>20", [0, 0, 1, 0]),
        ("price=20|30", [1, 0, 1, 0]),
        ("price!=20.0", [0, 1, 1, 1]),
        ("artist=Y", [0, 1, 1, 0]),
        ("artist!=X", [0, 1, 1, 1]),
        ("genre=rock | jazz", [1, 1, 0, 0]),
        ("genre!=pop|jazz", [0, 0, 0, 1]),
        ("genre=polka", [0, 0, 0, 0]),
    ],
)
def test_written_conditions(text: str, held: list[int]) -> None:
    assert Condition.parse(text).holds(ATTRIBUTES).tolist() == list(map(bool, held))


def test_json_says_the_same_and_several_parts_all_count() -> None:
    given_as = {"field": "price", "minimum": 19, "maximum": 25, "none_of": [20]}
    assert Condition.from_json(given_as).holds(ATTRIBUTES).tolist() == [False, True, False, False]
    assert Condition.from_json({"field": "genre", "any_of": ["rock", "jazz"]}) == Condition.parse(
        "genre=rock|jazz"
    )
    both = Condition.from_json({"field": "genre", "any_of": ["pop"], "none_of": ["rock"]})
    assert both.holds(ATTRIBUTES).tolist() == [False, False, True, False]
    conditions = [Condition.parse("price<=25"), Condition.parse("artist!=X")]
    assert all_hold(conditions, ATTRIBUTES).tolist() == [False, True, False, False]
    assert all_hold([], ATTRIBUTES).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("price", "condition 'price' cannot be read: write FIELD<=NUMBER"),
        ("<=20", "condition '<=20' cannot be read"),
        ("price<=", "condition 'price<=' cannot be read"),
        ("price=<20", "condition on 'price': '<20' is no number"),
        ("price<=cheap", "condition on 'price': 'cheap' is no number"),
        ("price>=nan", "condition on 'price': 'nan' is no number"),
        ("genre=|", "condition on 'genre': it asks for nothing"),
        ("colour=red", "'colour' is no attribute of items; the catalogue has artist, genre, price"),
        ("artist>=3", "condition on 'artist': it has words, no numbers"),
        ("price=dear", "condition on 'price': 'dear' is no number"),
    ],
)
def test_what_cannot_be_asked_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Condition.parse(text).holds(ATTRIBUTES)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("price<=3", "is no object with a field"),
        ({"maximum": 3}, "is no object with a field"),
        ({"field": "price"}, "it asks for nothing"),
        ({"field": "price", "max": 3}, "key 'max' is not known; keys are field, minimum"),
        ({"field": "price", "maximum": "3"}, "maximum is '3', give a number"),
        ({"field": "price", "maximum": True}, "maximum is True, give a number"),
        ({"field": "price", "maximum": float("nan")}, "are no finite numbers"),
        ({"field": "price", "maximum": 10**400}, "maximum is beyond all numbers"),
        ({"field": "genre", "any_of": "rock"}, "any_of is 'rock', give a list"),
        ({"field": "genre", "any_of": []}, "give a list of one or more values"),
        ({"field": "genre", "any_of": [None]}, "give a list of one or more values"),
    ],
)
def test_json_of_a_wrong_form_is_one_line(document: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Condition.from_json(document)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_catalogue_without_attributes_says_so() -> None:
    with pytest.raises(UserError, match="has none: name some under items.attributes"):
        Condition.parse("price<=20").holds(ItemAttributes(4, {}, {}))


def test_a_word_of_no_item_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Condition.parse("genre=rok").holds(ATTRIBUTES)
    assert "no item has genre 'rok'; did you mean 'rock'?" in caplog.text


def test_table_keeps_what_is_known() -> None:
    table = ATTRIBUTES.table(SPECS)
    assert table.dtypes == [pl.Float64, pl.String, pl.List(pl.String)]
    kept = ItemAttributes.of_table(table)
    for row, item in enumerate(ITEMS):
        expected = {name: [v] if isinstance(v, str) else v for name, v in item.items()}
        if "genre" in expected:
            expected["genre"] = sorted(set(expected["genre"]))
        found = {k: sorted(v) if isinstance(v, list) else v for k, v in kept.of_item(row).items()}
        assert found == expected
    nothing = ItemAttributes.of([{}, {}], SPECS)
    assert ItemAttributes.of_table(nothing.table(SPECS)).of_item(1) == {}


WORDS = st.sampled_from(["a", "b", "c", "d"])
NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([-0.5, 0.5]))


@given(
    items=st.lists(st.tuples(NUMBERS, st.none() | WORDS, st.lists(WORDS)), min_size=1, max_size=8),
    bounds=st.tuples(st.none() | st.integers(-3, 3), st.none() | st.integers(-3, 3)),
    any_of=st.sets(WORDS, min_size=1),
    none_of=st.sets(WORDS),
)
def test_conditions_hold_for_the_items_that_a_loop_finds(
    items: list[tuple[float | None, str | None, list[str]]],
    bounds: tuple[int | None, int | None],
    any_of: set[str],
    none_of: set[str],
) -> None:
    names = ("price", "artist", "genre")
    known = [
        {name: value for name, value in zip(names, item, strict=True) if value is not None}
        for item in items
    ]
    attributes = ItemAttributes.of(known, SPECS)
    low, high = bounds
    if low is not None or high is not None:
        expected = [
            price is not None and (low is None or price >= low) and (high is None or price <= high)
            for price, _, _ in items
        ]
        assert Condition("price", low, high).holds(attributes).tolist() == expected
    for field in ("artist", "genre"):
        condition = Condition(field, any_of=tuple(any_of), none_of=tuple(none_of))
        own = [set(genre) if field == "genre" else {artist} for _, artist, genre in items]
        expected = [bool(words & any_of) and not words & none_of for words in own]
        np.testing.assert_array_equal(condition.holds(attributes), expected)
