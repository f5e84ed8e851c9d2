"""What waits too long is refused, what dies or is away is waited for; each by itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from live_servers import free_port, serving

from mmrec.serving import answering, workers
from mmrec.serving.batching import Batched, Batcher
from mmrec.serving.faults import Fault
from mmrec.serving.monitoring import SHARED_FOLDER
from mmrec.serving.service import DatabaseAway, Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]


def sleeping(seconds: Callable[[int], float]) -> Callable[[list[int]], list[int | Exception]]:
    """A run that takes a while for each batch, by its first job."""

    def run(jobs: list[int]) -> list[int | Exception]:
        time.sleep(seconds(jobs[0]))
        return list(jobs)

    return run


def line(run: Callable[[list[int]], Any], **options: Any) -> Batcher[int, int]:
    settings = {"max_batch": 2, "max_waiting": 1000, "timeout_s": 5.0} | options
    return Batcher(run, name="lists", **settings)


def test_a_job_whose_turn_comes_too_late_is_refused_and_not_done() -> None:
    batches: list[Batched] = []

    async def ask() -> list[Any]:
        batcher = line(sleeping(lambda job: 0.2), max_batch=1, wait_s=0.11)
        batcher.on_batch = batches.append
        found = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
        batcher.close()
        return found

    first, late, foreseen = asyncio.run(ask())
    assert first == 0 and [each.size for each in batches] == [1]
    for refused in (late, foreseen):
        assert isinstance(refused, Fault) and refused.status_code == 429
        assert "later than in 0.11 s" in refused.message and refused.headers is not None


def test_at_twice_the_rate_whoever_is_answered_has_waited_no_longer_than_is_allowed() -> None:
    batches: list[Batched] = []
    statuses: list[int] = []

    async def ask(batcher: Batcher[int, int], job: int) -> None:
        try:
            assert await batcher.submit(job) == job
            statuses.append(200)
        except Fault as fault:
            statuses.append(fault.status_code)

    async def load() -> None:
        batcher = line(sleeping(lambda job: 0.02), wait_s=0.1)  # 100 a second
        batcher.on_batch = batches.append
        tasks = []
        for tenth in range(10):
            tasks += [asyncio.create_task(ask(batcher, 20 * tenth + n)) for n in range(20)]
            await asyncio.sleep(0.1)
        await asyncio.gather(*tasks)
        batcher.close()

    asyncio.run(load())
    assert set(statuses) == {200, 429} and statuses.count(200) == sum(b.size for b in batches)
    assert max(max(each.waited_s) for each in batches) <= 0.1


def test_a_line_that_was_slow_once_takes_jobs_again() -> None:
    async def ask() -> list[int]:
        batcher = line(sleeping(lambda job: 0.5 if job == 0 else 0.0), wait_s=0.05)
        found = [await batcher.submit(job) for job in range(5)]  # none of them finds it busy
        batcher.close()
        return found

    assert asyncio.run(ask()) == [0, 1, 2, 3, 4]


def a_service(tmp_path: Path, **settings: Any) -> Service:
    given = {"path": tmp_path, "database": f"sqlite:///{tmp_path / 's.sqlite'}"} | settings
    return Service(ServiceSettings(**given))


def test_a_write_that_the_database_does_not_take_in_time_is_refused(tmp_path: Path) -> None:
    async def write() -> None:
        service = a_service(tmp_path, timeout_s=0.05)
        try:
            await service.keep(lambda: time.sleep(0.3))
        finally:
            await service.close()

    with pytest.raises(Fault, match=r"within 0.05 s") as refused:
        asyncio.run(write())
    assert refused.value.status_code == 503 and refused.value.headers == {"Retry-After": "1"}


def test_a_worker_waits_for_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waiting:
        tries = 0

        def load(self) -> None:
            self.tries += 1
            if self.tries < 3:
                raise DatabaseAway("the database does not answer")

    monkeypatch.setattr(workers, "_LOOK_S", 0.01)
    waiting = Waiting()
    workers.load_when_there(cast("Service", waiting))
    assert waiting.tries == 3
    waiting.tries = -1000
    with pytest.raises(SystemExit) as left:
        workers.load_when_there(cast("Service", waiting), within_s=0.05)
    assert left.value.code == 1  # 3 would end the service
    url = f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none"
    with pytest.raises(DatabaseAway, match="check --database"):
        a_service(tmp_path, database=url).load()


def test_the_state_of_a_dead_worker_is_forgotten_and_its_counts_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"]) as dead:
        dead.wait()
    monkeypatch.setenv(SHARED_FOLDER, str(tmp_path))
    for pid in (dead.pid, os.getpid()):
        for kind in ("gauge_livesum", "gauge_livemax", "counter", "histogram"):
            (tmp_path / f"{kind}_{pid}.db").touch()
    workers.forget_the_dead()
    left = {each.name for each in tmp_path.iterdir() if each.stem.endswith(f"_{dead.pid}")}
    assert left == {f"counter_{dead.pid}.db", f"histogram_{dead.pid}.db"}
    assert (tmp_path / f"gauge_livesum_{os.getpid()}.db").exists()


def test_what_waits_when_it_is_told_to_end_is_answered(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = answering.follow

    def slow(*given: Any) -> None:
        time.sleep(0.2)
        follow(*given)

    def ask(address: str) -> int:
        asked = {"user_id": "u1", "k": 3}
        return httpx.post(f"{address}/v1/recommend", json=asked, timeout=20).status_code

    monkeypatch.setattr(answering, "follow", slow)
    settings = ServiceSettings(
        path=tiny_run, database=f"sqlite:///{tmp_path / 's.sqlite'}", max_batch=1
    )
    with ThreadPoolExecutor(5) as pool:
        with serving(settings) as (address, service):
            asking = [pool.submit(ask, address) for _ in range(5)]
            until = time.monotonic() + 10
            while service.lists.depth < 4:
                assert time.monotonic() < until
                time.sleep(0.01)
        assert [each.result() for each in asking] == [200] * 5
