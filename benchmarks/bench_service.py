"""The service: /v1/recommend against the bare model and index, and at twice what it can hold.

A model of ids on MovieLens-1M, trained for an epoch, since time does not depend on the weights. The
server has a process of its own with one worker; its callers have another, on the same machine.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from measure import ROOT, arguments, report
from movielens import prepare_log, read_config

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


async def at_rate(
    address: str, user_ids: list[str], rate: float, seconds: float
) -> tuple[Counter[int], list[float]]:
    """Requests that come at an even rate, whether or not those before were answered.

    Returns:
        How often each status came (0: no answer), and seconds of the accepted ones.
    """
    statuses: Counter[int] = Counter()
    accepted: list[float] = []

    async def ask(http: httpx.AsyncClient, user_id: str) -> None:
        began = time.perf_counter()
        try:
            answer = await http.post("/v1/recommend", json={"user_id": user_id, "k": K})
        except httpx.HTTPError:
            statuses[0] += 1
            return
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            accepted.append(time.perf_counter() - began)

    limits = httpx.Limits(max_connections=None)  # else they wait here, and not there
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=30) as http:
        tasks, began = [], time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            user_id = user_ids[number % len(user_ids)]
            tasks.append(asyncio.create_task(ask(http, user_id)))
        await asyncio.gather(*tasks)
    return statuses, accepted


async def capacity(address: str, user_ids: list[str], seconds: float) -> float:
    """Lists a second with sixteen callers who each wait for their answer."""
    until, done = time.perf_counter() + seconds, 0

    async def ask(number: int) -> None:
        nonlocal done
        async with httpx.AsyncClient(base_url=address, timeout=30) as http:
            while time.perf_counter() < until:
                number += 16
                user_id = user_ids[number % len(user_ids)]
                await http.post("/v1/recommend", json={"user_id": user_id, "k": K})
                done += 1

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
            statuses, accepted = asyncio.run(at_rate(address, user_ids, 2 * held, seconds))
        right = sum(count for status, count in statuses.items() if status in (200, 429))
        share = right / statuses.total()
        loaded = config | {"rate": round(2 * held), "statuses": dict(sorted(statuses.items()))}
        report("service_overload_200_or_429", [share], unit="ratio", bar=1.0, better="higher",
               small=small, config=loaded)  # fmt: skip
        slowest = 1000 * p99(accepted)  # the line is bounded, and with it what an answer waits
        report("service_overload_p99", [slowest], unit="ms", bar=5000, small=small, config=loaded)


if __name__ == "__main__":
    main()
