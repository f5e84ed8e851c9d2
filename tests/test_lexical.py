"""Search by words: BM25 is BM25 while documents come and go, and what people type is found."""

from __future__ import annotations

import math

import bm25s
import numpy as np
import pytest

from mmrec.retrieval.bm25 import K1, B, Bm25
from mmrec.retrieval.lexical import LexicalIndex
from mmrec.retrieval.terms import pieces, words

NUM_KEYS = 40


def random_documents(seed: int) -> dict[int, list[str]]:
    """Documents of a Zipf-like vocabulary by key; some keys have none, one is empty."""
    random = np.random.default_rng(seed)
    keys = random.permutation(NUM_KEYS)[:30].tolist()
    lengths = random.integers(1, 12, len(keys))
    found = {
        key: [f"t{min(term, 20)}" for term in random.zipf(1.5, length)]
        for key, length in zip(keys, lengths, strict=True)
    }
    return {**found, keys[0]: []}


def slow_scores(documents: dict[int, list[str]], query: list[str]) -> np.ndarray:
    """The formula of the module, a term and a document at a time."""
    usual = sum(map(len, documents.values())) / len(documents)
    found = np.zeros(NUM_KEYS)
    for key, terms in documents.items():
        for term in query:
            holding = sum(term in each for each in documents.values())
            rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = terms.count(term)
            found[key] += rarity * count / (count + K1 * (1 - B + B * len(terms) / usual))
    return found


QUERIES = (["t1"], ["t2", "t5", "t5"], ["t1", "t20", "absent"], ["absent"], [])


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_the_formula_and_of_the_library(seed: int) -> None:
    documents = random_documents(seed)
    index = Bm25()
    for key, terms in documents.items():
        index.add(key, terms)
    library = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
    library.index(list(documents.values()), show_progress=False)
    for query in QUERIES:
        found, _ = index.scores(query, NUM_KEYS)
        np.testing.assert_allclose(found, slow_scores(documents, query), atol=1e-12)
        known = [term for term in query if term in library.vocab_dict]
        if known:  # the library refuses others
            theirs = library.get_scores(known)
            np.testing.assert_allclose(found[list(documents)], theirs, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_after_changes_scores_are_those_of_an_index_made_anew(seed: int) -> None:
    random = np.random.default_rng(seed)
    documents, index = random_documents(seed), Bm25()
    for key, terms in documents.items():
        index.add(key, terms)
    for step in range(40):
        key = int(random.integers(NUM_KEYS))
        if step % 3:
            documents[key] = [f"t{term}" for term in random.integers(1, 21, 6)]
            index.add(key, documents[key])
        else:
            documents.pop(key, None)
            index.remove(key)
    assert len(index) == len(documents)
    for query in QUERIES:
        found, _ = index.scores(query, NUM_KEYS)
        np.testing.assert_allclose(found, slow_scores(documents, query), atol=1e-12)


def test_a_full_score_is_that_of_a_usual_document_with_the_whole_query() -> None:
    index = Bm25()
    for key, terms in enumerate((["a", "b"], ["b", "c"], ["d", "a"])):
        index.add(key, terms)
    scores, full = index.scores(["a", "b"], 3)
    assert scores[0] == pytest.approx(full)
    assert scores[1:].max() < full


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("A Red fox.", ["a", "red", "fox"], id="case-and-stops"),
        pytest.param("ｔｖ　ＨＤ ﬁne", ["tv", "hd", "fine"], id="wide-forms"),
        pytest.param("Straße STRASSE", ["strasse", "strasse"], id="folded"),
        pytest.param("AB-12/x", ["ab", "12", "x", "ab12x"], id="part-number"),
        pytest.param("don’t", ["don", "t", "dont"], id="apostrophe"),
        pytest.param("कपड़े", ["कपड़े"], id="marks-stay-with-their-letters"),
        pytest.param("青蛙。", ["青", "蛙", "青蛙"], id="chinese"),
        pytest.param("新款TV", ["新", "款", "新款", "tv"], id="mixed"),
        pytest.param("ねこ", ["ね", "こ", "ねこ"], id="japanese"),
        pytest.param("… ?!", [], id="nothing"),
    ],
)  # fmt: skip
def test_words_of_a_text(text: str, wanted: list[str]) -> None:
    assert words(text) == wanted


def test_pieces_are_of_words_with_spaces_alone() -> None:
    assert pieces("a fox 青蛙") == [" a ", " fo", "fox", "ox "]


ITEMS = [
    "A red fox.",
    "青蛙。\nA frog.",
    "Drill AB-1234, blue",
    None,
    "A “Sierra Beauty” apple.",
    "黄色柠檬。\nA yellow lemon.",
    "A lemon cake.",
]


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("fox", 0), ("青蛙", 1), ("FROG", 1), ("ab1234", 2), ("AB 1234", 2), ("siera beauty", 4),
        ("yelow lemmon", 5), ("柠檬", 5), ("lemons cake", 6),
    ],
)  # fmt: skip
def test_what_people_type_is_found(query: str, best: int) -> None:
    found = LexicalIndex(ITEMS).coverage(query, len(ITEMS))
    assert found.argmax() == best
    assert found[best] > 0.1
    assert found[3] == 0


def test_a_common_word_alone_gives_little() -> None:
    found = LexicalIndex(ITEMS).coverage("a zebra", len(ITEMS))
    assert 0 < found.max() < 0.25
    assert LexicalIndex(ITEMS).coverage("a red fox", len(ITEMS)).max() > 0.9


def test_an_item_is_found_once_added_and_never_once_removed() -> None:
    index = LexicalIndex(ITEMS)
    assert not index.coverage("walrus", 8).any()
    index.add(7, "A walrus.")
    assert index.coverage("walrus", 8).argmax() == 7
    index.add(7, "A horse.")  # in place of what it was
    assert not index.coverage("walrus", 8)[7]
    index.remove(7)
    index.remove(7)
    assert not index.coverage("horse", 8)[7]
    assert len(index) == len(LexicalIndex(ITEMS)) == 6
    np.testing.assert_array_equal(
        index.coverage("a yellow fox", 8), LexicalIndex(ITEMS).coverage("a yellow fox", 8)
    )
