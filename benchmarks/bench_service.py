"""The service: /v1/recommend against the bare model and index, and at twice what it can hold.

A model of ids on MovieLens-1M, trained for an epoch, since time does not depend on the weights. The
server has a process of its own with one worker; its callers have another, on the same machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from measure import ROOT, arguments, report
from movielens import prepare_log, read_config
from prometheus_client.parser import text_string_to_metric_families

from mmrec.retrieval.load import load_retriever
from mmrec.retrieval.recommend import recommend_next
from mmrec.retrieval.retriever import Retriever
from mmrec.training.train import train

K = 10


def bare(retriever: Retriever, users: list[int]) -> list[float]:
    """Seconds of a list each: the user's vector and the exact index."""
    found = []
    for user in users:
        asked = retriever.stored_user(user)
        began = time.perf_counter()
        recommend_next(retriever, asked, K)
        found.append(time.perf_counter() - began)
    return found


@contextmanager
def served(run: Path, folder: Path) -> Iterator[str]:
    """Address of `mmrec serve` in a process of its own."""
    database = f"sqlite:///{folder / 'service.sqlite'}"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mmrec.cli", "serve", str(run), "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--database", database], env=environment) as server:
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(600):
                try:
                    if httpx.get(f"{address}/readyz").is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield address
        finally:
            server.terminate()


def one_after_another(address: str, user_ids: list[str]) -> list[float]:
    """Seconds of each answer to a caller who waits for it."""
    found = []
    with httpx.Client(base_url=address) as http:
        for user_id in user_ids:
            began = time.perf_counter()
            answer = http.post("/v1/recommend", json={"user_id": user_id, "k": K})
            found.append(time.perf_counter() - began)
            assert answer.status_code == 200, answer.text
    return found


class Callers:
    """As many connections as it takes, each for one request at a time.

    By hand, since a pool of httpx looks through all of its connections at every request: with
    hundreds of them it is the caller who is slow, and no longer the service. What was to be sent in
    six seconds took it 36, and what it waited for itself looked like the service's time.

    Args:
        address: of the service.
    """

    def __init__(self, address: str) -> None:
        self._host, port = address.removeprefix("http://").split(":")
        self._port = int(port)
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, user_id: str) -> int:
        """The status that a question is answered with; 0: the connection broke."""
        body = json.dumps({"user_id": user_id, "k": K})
        head = (
            f"POST /v1/recommend HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            reader, writer = await self._connection()
            writer.write((head + body).encode())
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(answer.split("content-length:")[1].split()[0]))
        except (OSError, asyncio.IncompleteReadError):
            return 0
        self._free.append((reader, writer))
        return int(answer.split()[1])

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof():  # else it was idle for longer than the service keeps it
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        """Closes the connections."""
        for _, writer in self._free:
            writer.close()


async def at_rate(
    address: str, user_ids: list[str], rate: float, seconds: float
) -> tuple[Counter[int], list[float], float]:
    """Requests that come at an even rate, whether or not those before were answered.

    Returns:
        How often each status came (0: no answer), seconds of the accepted ones from when they
        were due, and by how much the latest request was sent too late.
    """
    statuses: Counter[int] = Counter()
    accepted: list[float] = []
    callers, tasks, began, late = Callers(address), [], time.perf_counter(), 0.0

    async def ask(user_id: str, due: float) -> None:
        status = await callers.ask(user_id)
        statuses[status] += 1
        if status == 200:
            accepted.append(time.perf_counter() - due)

    for number in range(int(rate * seconds)):
        due = began + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late = max(late, time.perf_counter() - due)
        tasks.append(asyncio.create_task(ask(user_ids[number % len(user_ids)], due)))
    await asyncio.gather(*tasks)
    callers.close()
    return statuses, accepted, late


def spent(address: str) -> dict[str, tuple[float, float]]:
    """Seconds in all and how many there were: in the line, in batches, in the whole app."""
    found: dict[str, dict[str, float]] = {}
    wanted = {"wait": {}, "batch": {}, "request": {"route": "/v1/recommend"}}
    for family in text_string_to_metric_families(httpx.get(f"{address}/metrics").text):
        for sample in family.samples:
            name, _, what = sample.name.removeprefix("mmrec_").partition("_seconds_")
            if what in ("sum", "count") and sample.labels == wanted.get(name):
                found.setdefault(name, {})[what] = sample.value
    return {name: (each["sum"], each["count"]) for name, each in found.items()}


async def capacity(address: str, user_ids: list[str], seconds: float) -> float:
    """Lists a second with sixteen callers who each wait for their answer."""
    until, done = time.perf_counter() + seconds, 0

    async def ask(number: int) -> None:
        nonlocal done
        callers = Callers(address)
        while time.perf_counter() < until:
            number += 16
            assert await callers.ask(user_ids[number % len(user_ids)]) == 200
            done += 1
        callers.close()

    await asyncio.gather(*map(ask, range(16)))
    return done / seconds


def p99(seconds: list[float]) -> float:
    """Of times."""
    return float(np.percentile(seconds, 99))


def main() -> None:
    """Prepare, train, and ask."""
    given = arguments(__doc__)
    small = given.small
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        source, run = prepare_log(folder, small), folder / "run"
        train(read_config(small, "training.max_epochs=1"), folder / "prepared", run)
        retriever = load_retriever(run)
        num_users, num_asked = len(retriever.users.user_ids), 100 if small else 1000
        users = np.random.default_rng(0).integers(num_users, size=num_asked).tolist()
        user_ids = [retriever.users.user_ids[user] for user in users]
        config = {"log": source, "items": len(retriever.items.item_ids), "lists": num_asked, "k": K}
        seconds = 2.0 if small else 10.0
        with served(run, folder) as address:
            for warm in (bare(retriever, users[:50]), one_after_another(address, user_ids[:50])):
                assert warm
            ratios, bares, https = [], [], []
            for _ in range(given.rounds):
                bares.append(bare(retriever, users))
                https.append(one_after_another(address, user_ids))
                ratios.append(p99(https[-1]) / p99(bares[-1]))
            report("service_p99_ratio", ratios, unit="ratio", bar=3.0, small=small, config=config)
            for what, times in (("bare", bares), ("http", https)):
                for q, name_of in ((50, "p50"), (99, "p99")):
                    values = [1000 * float(np.percentile(each, q)) for each in times]
                    name = f"service_{what}_{name_of}"
                    report(name, values, unit="ms", small=small, config=config)
            held = asyncio.run(capacity(address, user_ids, seconds))
            report("service_capacity", [held], unit="lists/s", small=small, config=config)
            before = spent(address)
            rated = asyncio.run(at_rate(address, user_ids, 2 * held, seconds))
            after = spent(address)
        statuses, accepted, late = rated
        right = sum(count for status, count in statuses.items() if status in (200, 429))
        share = right / statuses.total()
        loaded = config | {"rate": round(2 * held), "statuses": dict(sorted(statuses.items()))}
        loaded |= {"latest_ms": round(1000 * late, 1)}
        report("service_overload_200_or_429", [share], unit="ratio", bar=1.0, better="higher",
               small=small, config=loaded)  # fmt: skip
        slowest = 1000 * p99(accepted)  # two seconds in the line at most, a batch, both loops
        report("service_overload_p99", [slowest], unit="ms", bar=3000, small=small, config=loaded)
        report_parts(before, after, accepted, small=small, config=loaded)


def report_parts(
    before: Mapping[str, tuple[float, float]],
    after: Mapping[str, tuple[float, float]],
    accepted: Sequence[float],
    *,
    small: bool,
    config: Mapping[str, Any],
) -> None:
    """Where the time of an accepted request goes, means in the order of what holds what.

    In the line, in a batch (a mean over batches), in the app with both of them, and as the caller
    sees it: with the connection and the event loops of both sides.
    """
    means = {}
    for name, (total, count) in after.items():
        total_before, count_before = before[name]
        means[name] = 1000 * (total - total_before) / max(count - count_before, 1)
    parts = {
        "line": means["wait"],
        "batch": means["batch"],
        "app": means["request"],
        "caller": 1000 * float(np.mean(accepted)),
    }
    for part, value in parts.items():
        report(f"service_overload_{part}", [value], unit="ms", small=small, config=config)


if __name__ == "__main__":
    main()
