"""Paths: the beam against every path there is, no repeats, rules, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrec.cli import main
from mmrec.errors import UserError
from mmrec.recommender import Recommender
from mmrec.retrieval.retriever import Asked, Retriever

pytest_plugins = ["tiny_run"]

HISTORY = ["i1", "i2"]
UNMET = 6  # of so few candidates every path can be tried


@pytest.fixture(scope="module")
def recommender(tiny_run: Path) -> Recommender:
    """Of few candidates: one may not meet what nobody lists."""
    whole = Recommender.load(tiny_run).retriever
    is_candidate = whole.items.is_candidate.copy()
    is_candidate[np.flatnonzero(is_candidate)[UNMET + 3 :]] = False
    items = replace(whole.items, is_candidate=is_candidate)
    return Recommender(replace(whole, items=items))


def log_probability(retriever: Retriever, asked: Asked, path: tuple[int, ...]) -> float:
    """By the formula, an item at a time."""
    total, tau = 0.0, float(retriever.model.temperature.detach())
    met = list(asked.history)
    for row in path:
        ids = [retriever.items.item_ids[each] for each in met]
        user = retriever.user_vectors([retriever.given_user(ids)])[0]
        logits = {
            int(each): float(
                user @ retriever.vectors.embedding[each] + tau * retriever.vectors.bias[each]
            ) / tau
            for each in retriever.items.candidates
            if each not in met
        }  # fmt: skip
        total += logits[row] - float(torch.tensor(list(logits.values())).logsumexp(0))
        met.append(row)
    return total


def test_a_wide_beam_finds_the_likeliest_of_all_paths(recommender: Recommender) -> None:
    retriever = recommender.retriever
    asked = retriever.given_user(HISTORY)
    unmet = [int(each) for each in retriever.items.candidates if each not in asked.seen]
    assert UNMET <= len(unmet) <= UNMET + 3
    every = {
        tuple(retriever.items.item_ids[row] for row in path): log_probability(
            retriever, asked, path
        )
        for path in permutations(unmet[:UNMET], 2)
    }
    few = {retriever.items.item_ids[row] for row in unmet[:UNMET]}
    found = recommender.path(
        history=HISTORY, length=2, k=len(every), beam=100, rule=lambda _, item_id: item_id in few
    )
    best = sorted(every.items(), key=lambda each: -each[1])
    assert {each.item_ids for each in found} == every.keys()
    assert [each.log_probability for each in found] == pytest.approx(
        [value for _, value in best], abs=1e-4
    )
    assert [every[each.item_ids] for each in found] == pytest.approx(
        [each.log_probability for each in found], abs=1e-4
    )
    narrow = recommender.path(history=HISTORY, length=2, beam=1)[0]  # the greedy one
    first = recommender.recommend(history=HISTORY, k=1)[0].item_id
    second = recommender.recommend(history=[*HISTORY, first], k=1)[0].item_id
    assert narrow.item_ids == (first, second)


def test_no_item_comes_twice_and_paths_end_where_all_is_met(recommender: Recommender) -> None:
    found = recommender.path(history=HISTORY, length=4, k=5)
    for each in found:
        assert len(set(each.item_ids)) == 4 and not set(HISTORY) & set(each.item_ids)
        assert each.log_probability < 0
    assert recommender.path(history=HISTORY, length=50) == []


def test_a_rule_says_what_may_follow(recommender: Recommender) -> None:
    """Numbers that grow: a course behind the ones it builds on."""

    def grows(path: tuple[str, ...], item_id: str) -> bool:
        return not path or int(item_id[1:]) > int(path[-1][1:])

    for each in recommender.path(history=HISTORY, length=3, k=4, rule=grows):
        numbers = [int(item_id[1:]) for item_id in each.item_ids]
        assert numbers == sorted(numbers)
    assert recommender.path(history=HISTORY, length=3, rule=lambda *_: False) == []


@pytest.mark.parametrize(
    ("sizes", "line"),
    [({"length": 0}, "length is 0: give 1"), ({"k": 9, "beam": 4}, "beam is 4: give 9 at least")],
    ids=["length", "beam"],
)
def test_sizes_that_make_no_path_are_refused(
    recommender: Recommender, sizes: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line):
        recommender.path(history=HISTORY, **sizes)


def test_the_command_lists_the_paths_of_the_library(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Recommender.load(tiny_run).path(history=HISTORY, length=3, k=2, beam=8)
    words = ["path", str(tiny_run), "--history", ",".join(HISTORY)]
    words += ["--length", "3", "-k", "2", "--beam", "8"]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["query"] == {"history": HISTORY, "length": 3, "beam": 8}
    assert told["paths"] == [{**asdict(each), "item_ids": list(each.item_ids)} for each in found]
    assert main(words) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["item_ids", "log_probability"]
    assert [row.rsplit(maxsplit=1)[0].strip() for row in rows] == [
        ", ".join(each.item_ids) for each in found
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "none given, allowed is exactly one of --user, --history, --attribute"),
        (["--user", "u1", "--history", "i1"], "--user and --history given"),
        (["--user", "u1", "-k", "9", "--beam", "4"], "beam is 4: give 9 at least"),
    ],
    ids=["nobody", "two", "beam"],
)
def test_what_the_command_cannot_ask_is_one_line(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], options: list[str], line: str
) -> None:
    assert main(["path", str(tiny_run), *options]) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1
