"""`mmrec serve --workers 2`: one of them is killed, and nothing that was accepted is lost."""

from __future__ import annotations

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from live_servers import deployed

from mmrec.serving.database import Database

pytest_plugins = ["tiny_run", "live_servers"]


def found_by_any_worker(address: str) -> None:
    """An item that one worker is told of is found by words and meaning, wherever it is asked."""
    form = {"item_id": (None, "n1"), "title": (None, "The zebra"), "plot": (None, "A xylophone.")}
    assert httpx.post(f"{address}/v1/items", files=form, timeout=20).status_code == 200
    for listed in (True, False, True):
        body = {"listed": listed}
        assert httpx.put(f"{address}/v1/items/n1", json=body, timeout=20).status_code == 200
        for number in range(12):  # a connection each, so that both of them are asked
            asked = {"text": "xylophone", "by": ("lexical", "dense", "hybrid")[number % 3], "k": 50}
            answer = httpx.post(f"{address}/v1/search", json=asked, timeout=20).json()
            assert ("n1" in [each["item_id"] for each in answer["items"]]) == listed


@pytest.mark.slow
def test_a_worker_is_killed_and_nothing_is_lost(tiny_run: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    accepted: list[str] = []
    wrong: list[str] = []
    stop = threading.Event()

    def send(name: int, address: str) -> None:
        number = 0
        while not stop.is_set():
            event = {"user_id": f"s{name}", "item_id": "i1", "event_id": f"{name}-{number}"}
            try:
                with httpx.Client(base_url=address, timeout=20) as http:  # any of the workers
                    answer = http.post("/v1/events", json={"events": [event]})
                with httpx.Client(base_url=address, timeout=20) as http:
                    listed = http.post("/v1/recommend", json={"user_id": f"s{name}", "k": 20})
            except httpx.TransportError:
                continue  # of the worker that was killed: sent again with the same id
            if answer.status_code != 200 or listed.status_code != 200:
                wrong.append(answer.text + listed.text)
                continue
            if "i1" in [each["item_id"] for each in listed.json()["items"]]:
                wrong.append("an item that was met just now is listed")
            accepted.append(event["event_id"])
            number += 1

    with deployed(tiny_run, url, workers=2) as deployment, ThreadPoolExecutor(3) as pool:
        sending = [pool.submit(send, name, deployment.address) for name in range(3)]
        try:
            time.sleep(8)  # the second one is up too
            workers = deployment.workers()
            assert len(workers) == 2
            workers[0].kill()
            before = len(accepted)
            time.sleep(8)
        finally:
            stop.set()
        for each in sending:
            each.result()
        found_by_any_worker(deployment.address)
        metrics = httpx.get(f"{deployment.address}/metrics").text
    kept = Database(url)
    assert set(accepted) <= {each.event_id for each in kept.all_events()}
    kept.close()
    assert not wrong and len(accepted) > before > 0
    # of both workers, since they share what they count
    counted = [line for line in metrics.splitlines() if line.startswith("mmrec_events_total")]
    assert float(counted[0].split()[-1]) >= len(accepted)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_told_to_end_it_answers_what_it_accepts(
    workers: int, tiny_run: Path, tmp_path: Path
) -> None:
    """SIGTERM under load: whatever is in the database was answered, and nothing else was."""
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    answered: set[str] = set()
    is_to_end = threading.Event()

    def send(name: int, address: str) -> None:
        number = 0
        while True:
            event = {"user_id": f"s{name}", "item_id": "i1", "event_id": f"{name}-{number}"}
            try:  # a connection each: one that is idle may be closed at any time
                answer = httpx.post(f"{address}/v1/events", json={"events": [event]}, timeout=20)
            except httpx.TransportError:
                assert is_to_end.is_set()
                return
            assert answer.status_code == 200, answer.text
            answered.add(event["event_id"])
            number += 1

    with deployed(tiny_run, url, workers=workers) as deployment, ThreadPoolExecutor(8) as pool:
        sending = [pool.submit(send, name, deployment.address) for name in range(8)]
        time.sleep(3)
        is_to_end.set()
        deployment.process.terminate()
        for each in sending:
            each.result()
        assert deployment.process.wait(30) in (0, -signal.SIGTERM)
    kept = Database(url)
    assert {each.event_id for each in kept.all_events()} == answered and len(answered) > 20
    kept.close()
