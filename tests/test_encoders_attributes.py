"""Attributes as tokens: what each type becomes, what is not known, and what a catalogue teaches."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from encoders.attributes import (
    AttributeEncoder,
    AttributeTransform,
    FieldSpec,
    describe_fields,
)
from fusion.item import Modality, TokenProjection

TYPES: dict[str, Literal["category", "set", "number"]] = {
    "rated": "category",
    "genres": "set",
    "year": "number",
}
RECORDS: list[dict[str, Any]] = [
    {"rated": "PG", "genres": ["Drama", "War"], "year": 1990},
    {"rated": "PG", "genres": ["Drama"], "year": 2000},
    {"rated": "R", "genres": [], "year": 2010},
    {},
]


def make_transform(**sizes: int) -> AttributeTransform:
    return AttributeTransform(describe_fields(TYPES, RECORDS, **sizes))


def test_vocabularies_and_knots() -> None:
    rated, genres, year = describe_fields(TYPES, RECORDS, num_knots=3)
    assert rated.values == ("PG", "R") and genres.values == ("Drama", "War")
    assert year.knots == (1990.0, 2000.0, 2010.0)
    # one column more for what is not known
    assert [field.num_columns for field in (rated, genres, year)] == [3, 3, 3]
    few = describe_fields(TYPES, RECORDS, max_values=1)
    assert few[0].values == ("PG",) and few[1].values == ("Drama",)


def test_knots_are_quantiles_so_that_a_scale_does_not_matter() -> None:
    prices = np.exp(np.random.default_rng(0).normal(3, 2, 999))
    plain = describe_fields({"p": "number"}, [{"p": p} for p in prices], num_knots=7)[0]
    logs = describe_fields({"p": "number"}, [{"p": np.log(p)} for p in prices], num_knots=7)[0]
    np.testing.assert_allclose(np.log(plain.knots), logs.knots, rtol=1e-6)


def test_every_type_by_hand() -> None:
    transform = make_transform(num_knots=3)
    sample = transform({"rated": "R", "genres": ["War", "Drama"], "year": 1992.5})
    assert sample is not None
    half = 2**-0.5
    wanted = torch.zeros(3, 9)
    wanted[0, 1] = 1
    wanted[1, 3], wanted[1, 4] = half, half
    wanted[2, 6], wanted[2, 7] = 0.75, 0.25
    torch.testing.assert_close(sample, wanted)


def test_unknown_values_share_a_column_and_missing_fields_have_no_token() -> None:
    transform, encoder = make_transform(num_knots=3), AttributeEncoder(3, 9)
    samples = [
        transform({"rated": "never seen", "genres": ["Drama", "new", "other"]}),
        transform({"rated": "PG", "genres": [], "year": 1000}),
        transform({}),
        transform({"genres": []}),
        None,
    ]
    assert samples[2] is None and samples[3] is None
    tokens = encoder(transform.collate(samples))
    assert tokens.mask.tolist() == [
        [True, True, False],
        [True, False, True],
        [False] * 3,
        [False] * 3,
        [False] * 3,
    ]
    assert tokens.values[0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0]
    third = 3**-0.5
    torch.testing.assert_close(tokens.values[0, 1, 3:6], torch.tensor([third, 0, 2 * third]))
    assert tokens.values[1, 2].tolist() == [0] * 6 + [1, 0, 0]  # below the first knot: the first
    assert encoder.pooled(tokens)[2:].abs().sum() == 0
    empty = transform.collate([])
    assert empty["fields"].shape == (0, 3, 9) and empty["present"].shape == (0,)


def test_number_is_piecewise_linear_and_clamped() -> None:
    field = FieldSpec("year", "number", knots=(0.0, 1.0, 10.0))
    assert field.weights(-5) == {0: 1.0} and field.weights(99) == {2: 1.0}
    assert field.weights(1) == {1: 1.0}
    for number in np.linspace(0, 10, 23):
        weights = field.weights(number)
        assert sum(weights.values()) == pytest.approx(1)
        assert sum(w * field.knots[c] for c, w in weights.items()) == pytest.approx(number)
    one_value = FieldSpec("year", "number", knots=(7.0,))
    assert one_value.weights(3) == {0: 1.0}


def test_on_a_log_scale_ratios_count_and_0_has_a_place_of_its_own() -> None:
    field = FieldSpec("price", "number", knots=(0.0, 10.0, 1000.0), log=True)
    assert field.weights(0) == {0: 1.0} and field.weights(0.001) == {1: 1.0}
    assert field.weights(1e9) == {2: 1.0}
    for low, number, high in ((10.0, 100.0, 1000.0), (10.0, 40.0, 1000.0)):
        weights = field.weights(number)
        assert sum(weights.values()) == pytest.approx(1)
        place = weights[1] * np.log(low) + weights[2] * np.log(high)
        assert place == pytest.approx(np.log(number))
    # where nothing in training is free, 0 is as good as the lowest price
    assert FieldSpec("price", "number", knots=(10.0, 1000.0), log=True).weights(0) == {0: 1.0}
    with pytest.raises(ValueError, match="attribute price is -3: a log scale begins at 0"):
        field.weights(-3)


def test_knots_of_a_log_scale_pass_over_values_below_0() -> None:
    prices = [0, 0, -1, 1, 10, 100]
    records = [{"price": price} for price in prices]
    (field,) = describe_fields({"price": "number"}, records, num_knots=4, logs={"price"})
    assert field.knots == (0.0, 1.0, 10.0, 100.0) and field.log
    with pytest.raises(
        ValueError, match="attribute price: no item of training has a value above 0"
    ):
        describe_fields({"price": "number"}, records[:3], logs={"price"})
    transform = AttributeTransform([field])
    assert AttributeTransform.from_document(transform.document()).fields == (field,)
    plain = AttributeTransform([FieldSpec("price", "number", knots=field.knots)])
    assert "log" not in plain.document()[0]  # so that older caches stay good
    assert plain.fingerprint() != transform.fingerprint()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "abc"])
def test_number_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        make_transform()({"year": value})


def test_field_that_nothing_is_known_of_is_refused() -> None:
    with pytest.raises(ValueError, match="attribute colour: no item of training has a value"):
        describe_fields({"colour": "category"}, RECORDS)
    with pytest.raises(ValueError, match="no attribute is left"):
        describe_fields({}, RECORDS)


def test_document_gives_the_same_transform() -> None:
    transform = make_transform(num_knots=3)
    again = AttributeTransform.from_document(transform.document())
    assert again.fields == transform.fields
    assert again.fingerprint() == transform.fingerprint()
    assert make_transform(num_knots=2).fingerprint() != transform.fingerprint()
    assert AttributeEncoder(3, 9).fingerprint() != AttributeEncoder(3, 8).fingerprint()


def test_projection_is_a_table_of_vectors() -> None:
    # two items that share a genre and nothing else differ in what they do not share alone
    torch.manual_seed(0)
    transform, encoder = make_transform(num_knots=3), AttributeEncoder(3, 9)
    projection = TokenProjection(Modality(9, 3), width=8, feature_dropout=0.0)
    records = [{"rated": "PG", "genres": ["War"]}, {"rated": "R", "genres": ["War"]}]
    tokens = encoder(transform.collate([transform(record) for record in records]))
    projected = projection(tokens)
    torch.testing.assert_close(projected[0, 1], projected[1, 1])
    assert not torch.allclose(projected[0, 0], projected[1, 0])
