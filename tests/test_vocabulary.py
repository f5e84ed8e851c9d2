"""Texts that a model's vocabulary does not know are told before training, field by field."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from encoders.characters import learn_characters
from encoders.text import TextTransform, train_vocabulary
from mmrec.config import EncoderConfig
from mmrec.data import vocabulary
from mmrec.data.vocabulary import new_shares, unknown_shares, warn_of_unknown
from mmrec.encoder_parts import make_encoder
from mmrec.weights import folder_of

ENGLISH = ["a quiet river", "the old garden", "a red letter", "the river garden"]
CHINESE = ["小狗", "大象 和 河马"]


def test_shares_are_of_each_field() -> None:
    transform = TextTransform(train_vocabulary(ENGLISH, 200))
    shares = unknown_shares(transform, [{"en": "quiet garden", "zh": "小狗", "both": "river 小"}])
    assert shares["en"] == 0 and shares["zh"] == 1 and 0 < shares["both"] < 1
    # a vocabulary that is learnt from the catalogue spells what it has seen
    both = TextTransform(train_vocabulary([*ENGLISH, *CHINESE], 200))
    assert unknown_shares(both, [{"zh": text} for text in CHINESE]) == {"zh": 0.0}
    assert unknown_shares(transform, [{"en": ""}]) == {}


def test_a_vocabulary_of_bytes_knows_everything() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["[PAD]"], show_progress=False
    )
    tokenizer.train_from_iterator(ENGLISH, trainer)
    assert unknown_shares(TextTransform(tokenizer.to_str()), [{"zh": "小狗"}]) == {}


def test_only_what_cannot_be_read_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vocabulary, "never_cold", lambda data: iter(range(2)))
    texts = [{"en": "quiet river", "zh": "小狗"}, {"en": "old letter", "zh": "大象"}]
    data: Any = SimpleNamespace(items=SimpleNamespace(text=lambda row: texts[row]))
    transform = TextTransform(train_vocabulary(ENGLISH, 200))
    with caplog.at_level(logging.WARNING):
        warn_of_unknown(data, transform, "minilm")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("encoders.text: 100 % of the pieces of field 'zh' are not in")
    assert "vocabulary of minilm" in message and "encoders.text.kind=small" in message
    assert "encoders.text.options.vocabulary=characters" in message


def test_signs_to_come_are_as_many_as_those_that_occur_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside a draw: texts of a vocabulary with a long tail, and how many of the next are new."""
    random = np.random.default_rng(0)
    chances = 1 / np.arange(1, 2001)
    drawn = random.choice(2000, size=(400, 8), p=chances / chances.sum())
    signs = ["".join(chr(0x4E00 + sign) for sign in row) for row in drawn]
    texts = [{"en": "a river", "zh": name} for name in signs[:300]]
    learnt = TextTransform(train_vocabulary([f"a river {name}" for name in signs[:300]], 4000))
    found = new_shares(learnt, texts)
    met = set("".join(signs[:300]))
    wanted = np.mean([sign not in met for name in signs[300:] for sign in name])
    assert found["en"] == 0 and found["zh"] == pytest.approx(wanted, rel=0.25) and wanted > 0.05
    monkeypatch.setattr(vocabulary, "never_cold", lambda data: iter(range(300)))
    data: Any = SimpleNamespace(items=SimpleNamespace(text=lambda row: texts[row]))
    with caplog.at_level(logging.WARNING):
        warn_of_unknown(data, learnt, None)
        warn_of_unknown(data, TextTransform(learn_characters(signs[:300])), None)
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"about {100 * found['zh']:.0f} % of the signs of new texts like those of" in message
    assert "field 'zh'" in message and "encoders.text.options.vocabulary=characters" in message
    assert new_shares(learnt, [{"en": "a river"}]) == {}  # too little to tell from


@pytest.mark.realdata
def test_minilm_cannot_read_chinese_names_and_a_learnt_vocabulary_can(shared_data: Path) -> None:
    with open(shared_data / "stamps" / "items.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name_zh"]]
    texts = [{"en": row["name_en"], "zh": row["name_zh"]} for row in rows]
    # names that the vocabulary has not seen, as a query may be: one sign in six is new to it
    learnt = TextTransform(train_vocabulary([row["name_zh"] for row in rows[::2]], 4000))
    found = unknown_shares(learnt, [{"zh": row["name_zh"]} for row in rows[1::2]])
    assert found["zh"] < 0.2
    if folder_of("minilm") is None:
        pytest.skip("weights minilm are not installed: mmrec weights install minilm")
    parts = make_encoder(
        "text",
        EncoderConfig(kind="transformers", weights="minilm"),
        texts=list,
        vector_width=lambda _: 0,
    )
    shares = unknown_shares(parts.transform, texts)  # type: ignore[arg-type]
    assert shares["en"] < 0.01 and shares["zh"] > 0.4
