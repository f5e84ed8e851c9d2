"""What is asked of known items reads their stored vectors: no encoder works at request time."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mmrec.recommender import Recommender

pytest_plugins = ["tiny_run"]


@pytest.fixture
def calls(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Recommender, Counter[str]]:
    """A recommender as it is loaded, and how often each encoder and the fusion are called since."""
    recommender, calls = Recommender.load(tiny_run), Counter[str]()
    model = recommender.retriever.model

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in recommender.retriever.transforms:
        encoder = model.encoder(name)
        for part in ("below", "above"):
            monkeypatch.setattr(encoder, part, counted(name, getattr(encoder, part)))
    assert model.fusion is not None
    monkeypatch.setattr(model.fusion, "forward", counted("fusion", model.fusion.forward))
    return recommender, calls


def test_known_items_are_never_encoded(calls: tuple[Recommender, Counter[str]]) -> None:
    recommender, made = calls
    recommender.recommend("u7", k=5)
    recommender.recommend(history=["i1", "i2"], k=5)
    recommender.recommend(history=[], k=5)
    recommender.similar("i1", k=5)
    recommender.embed_users([["i3"], ["i4", "i5"]])
    recommender.embed_items(["i1", "i6"])
    assert made == {}


def test_a_text_is_encoded_once(calls: tuple[Recommender, Counter[str]]) -> None:
    """The counters count: a question in words has to be read."""
    recommender, made = calls
    recommender.search("quiet river", k=5)
    assert made["text"] >= 1 and made["fusion"] >= 1
