"""A vocabulary of characters reads any text, and what it has learnt does not depend on order."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from encoders.characters import BYTES, learn_characters
from encoders.text import TextTransform
from mmrec.config import EncoderConfig
from mmrec.data.vocabulary import unknown_shares
from mmrec.encoder_parts import make_encoder, rebuild_encoder
from mmrec.errors import ConfigError

NAMES = ["一只小狗", "小狗", "a red dog", "a red frog"]


def pieces(transform: TextTransform, text: str) -> list[str]:
    """What a text is read as."""
    tokens: list[str] = transform.tokenizer.encode(text).tokens
    return tokens


def make_text(**options: int | float | str | bool) -> Any:
    """A small text encoder over the names."""
    return make_encoder(
        "text",
        EncoderConfig(options={"width": 16, "num_layers": 1, "num_heads": 2, **options}),
        texts=lambda: NAMES,
        vector_width=lambda _: 0,
    )


def test_characters_are_read_one_by_one_and_new_ones_as_their_bytes() -> None:
    transform = TextTransform(learn_characters(NAMES))
    assert pieces(transform, "小狗") == ["小", "狗"]
    spelled = [f"<0x{byte:02X}>" for byte in "鲸".encode()]
    assert pieces(transform, "小鲸") == ["小", *spelled]
    # met once in training, 一 is bytes there already: no byte is new in use alone
    assert pieces(transform, "一") == [f"<0x{byte:02X}>" for byte in "一".encode()]
    ids = transform("小鲸")
    assert ids is not None and transform.pad_id == 0 and not (ids == 0).any()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Ｄｏｇ", "dog"),
        (" a \n\t dog ", "a dog"),
        ("DOG", "dog"),
        ("が", "か\u3099"),
        ("[PAD]", "[pad]"),  # no way to write the padding
        ("<0x41>", "<0X41>"),  # nor a byte
    ],
    ids=["full width", "white space", "capitals", "marks", "padding", "byte"],
)
def test_ways_to_write_a_text_are_one(text: str, same: str) -> None:
    transform = TextTransform(learn_characters(NAMES))
    assert pieces(transform, text) == pieces(transform, same) != []


@pytest.mark.parametrize("text", ["Ünïcödé कि की 鬱 🦖 \x07", "か", "e"])
def test_every_text_can_be_read_back(text: str) -> None:
    transform = TextTransform(learn_characters(NAMES))
    ids = transform(text)
    assert ids is not None and transform.tokenizer.decode(ids.tolist()) == text.lower()
    assert unknown_shares(transform, [{"name": text}]) == {}  # it has no id for what is unknown


def test_marks_that_change_a_word_stay() -> None:
    transform = TextTransform(learn_characters(NAMES))
    assert pieces(transform, "कि") != pieces(transform, "की")
    assert pieces(transform, "が") != pieces(transform, "か")


def test_equal_texts_give_equal_vocabularies_in_any_order() -> None:
    first = learn_characters(NAMES)
    assert learn_characters(NAMES[::-1]) == first
    vocabulary = json.loads(first)["model"]["vocab"]
    assert list(vocabulary)[:257] == ["[PAD]", *BYTES]
    # by how often they occur, then by code point; 'f' and 'o' of "frog" and "dog" among them
    assert list(vocabulary)[257:] == [" ", "d", "r", "a", "e", "g", "o", "小", "狗"]
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    smaller = json.loads(learn_characters(NAMES, 259))["model"]["vocab"]
    assert list(smaller)[257:] == [" ", "d"]


def test_settings_choose_the_vocabulary_and_a_document_keeps_it() -> None:
    parts = make_text(vocabulary="characters", vocabulary_size=300)
    assert parts.document["tokenizer"] == learn_characters(NAMES, 300)
    assert parts.transform.max_length == 256
    assert make_text(vocabulary="characters", max_length=20).transform.max_length == 20
    again = rebuild_encoder(parts.document)
    assert again.transform.fingerprint() == parts.transform.fingerprint()
    tokens = again.encoder(again.transform.collate([again.transform("🦖小狗")]))
    assert int(tokens.mask.sum()) == len("🦖".encode()) + 2
    usual, named = make_text(), make_text(vocabulary="pieces")
    assert usual.document == named.document and usual.transform.max_length == 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vocabulary": "letters"}, "options.vocabulary is 'letters': allowed are pieces, char"),
        ({"vocabulary": "characters", "vocabulary_size": 257}, "is 257: .*give 258 or more"),
    ],
    ids=["kind", "size"],
)
def test_what_cannot_be_learnt_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"encoders.text: .*{says}") as caught:
        make_text(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.realdata
def test_half_of_the_chinese_names_reads_the_other_half(shared_data: Path) -> None:
    """Nothing is lost, where word pieces lose one sign in six, and a sign takes few pieces."""
    with open(shared_data / "stamps" / "items.csv", encoding="utf-8", newline="") as file:
        names = [row["name_zh"] for row in csv.DictReader(file) if row["name_zh"]]
    transform = TextTransform(learn_characters(names[::2]))
    tokenizer, new = transform.tokenizer, names[1::2]
    read = [tokenizer.encode(name).ids for name in new]
    assert [tokenizer.decode(ids) for ids in read] == [
        tokenizer.normalizer.normalize_str(name) for name in new
    ]
    assert sum(map(len, read)) < 2 * sum(map(len, new))
