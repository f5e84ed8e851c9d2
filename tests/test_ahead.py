"""Loading ahead: the order of the parts, what is in memory at once, and errors."""

from __future__ import annotations

import threading
import time

import pytest

from mmrec.data.ahead import load_ahead, loading_threads


def test_parts_come_in_order_and_few_are_ahead() -> None:
    loaded: list[int] = []

    def load(number: int) -> int:
        time.sleep(0.002 * (number % 3))  # some overtake others
        loaded.append(number)
        return number

    got = []
    for number in load_ahead(load, range(20), num_threads=3, ahead=4):
        got.append(number)
        assert len(loaded) <= len(got) + 4
    assert got == list(range(20)) and sorted(loaded) == got


def test_one_part_is_loaded_by_the_caller() -> None:
    threads = [thread for thread in load_ahead(lambda _: threading.get_ident(), [0])]
    assert threads == [threading.get_ident()]
    assert list(load_ahead(lambda _: 1, [])) == []
    assert loading_threads() >= 1


def test_error_of_a_part_comes_in_its_turn_and_no_thread_is_left() -> None:
    def load(number: int) -> int:
        if number == 2:
            raise ValueError("part 2 is broken")
        return number

    before, got = threading.active_count(), []
    with pytest.raises(ValueError, match="part 2 is broken"):
        for number in load_ahead(load, range(9), num_threads=2):
            got.append(number)
    assert got == [0, 1] and threading.active_count() == before
    some = load_ahead(load, range(2), num_threads=2)
    assert next(some) == 0
    some.close()
    assert threading.active_count() == before
