"""A version that is put in place stays there, whenever a worker looks for another one."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmrec.retrieval.retriever import Retriever
from mmrec.serving import service as service_module
from mmrec.serving import versions as versions_module
from mmrec.serving.database import DATABASE_ERRORS, Database
from mmrec.serving.live import Live
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run"]
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def models(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two versions."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        shutil.copytree(tiny_run, folder / name)
    return folder


class Watched(Service):
    """A worker that looks often, with what it has put in place and what its database does."""

    def __init__(self, models: Path, folder: Path) -> None:
        url = f"sqlite:///{folder / 'service.sqlite'}"
        super().__init__(ServiceSettings(path=models / "one", models=models, database=url))
        self.put: list[str | None] = []
        put = self.versions.put

        def noted(live: Live | None) -> None:
            self.put.append(None if live is None else live.version)
            put(live)

        self.versions.put = noted  # type: ignore[method-assign]
        self.looked = 0
        """How often the version was looked up and given to whoever looked."""

    def looks_up(self, version: Callable[[], str | None]) -> None:
        """Lets the version be looked up in another way."""

        def counted() -> str | None:
            found = version()
            self.looked += 1
            return found

        self.database.version = counted  # type: ignore[method-assign]

    async def looks(self, more: int = 3) -> None:
        """Waits until it has looked some more times."""
        until = self.looked + more
        async with asyncio.timeout(WITHIN_S):
            while self.looked < until:
                await asyncio.sleep(0.01)


@pytest.fixture
def watched(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """On version one, as the database has it too."""
    monkeypatch.setattr(service_module, "LOOK_S", 0.01)
    service = Watched(models, tmp_path)
    service.load()
    assert service.live is not None
    service.database.add_version("one", service.live.model_hash)
    return service


def run(service: Watched, work: Callable[[], Any]) -> None:
    """Does something while the service runs."""

    async def all_of_it() -> None:
        await service.start()
        try:
            await work()
        finally:
            await service.close()

    asyncio.run(all_of_it())


def test_it_stays_where_a_look_comes_before_its_record(watched: Watched) -> None:
    record, in_place = threading.Event(), threading.Event()
    add_version, version = watched.database.add_version, watched.database.version

    def late(*given: Any) -> None:
        in_place.set()
        assert record.wait(WITHIN_S)
        add_version(*given)

    watched.database.add_version = late  # type: ignore[method-assign]
    watched.looks_up(version)

    async def change() -> None:
        changing = asyncio.create_task(watched.versions.change("two"))
        assert await asyncio.to_thread(in_place.wait, WITHIN_S)
        looking = asyncio.create_task(watched.looks())
        await asyncio.wait([looking], timeout=0.5)  # several looks, or one that waits for the lock
        record.set()
        await changing
        await looking
        await watched.looks()

    run(watched, change)
    assert watched.put == ["one", "two"]


def test_it_stays_where_what_was_looked_up_is_old_by_then(watched: Watched) -> None:
    found, go_on = threading.Event(), threading.Event()
    version = watched.database.version

    def held_up() -> str | None:
        named = version()
        if not found.is_set():
            found.set()
            assert go_on.wait(WITHIN_S)
        return named

    watched.looks_up(held_up)

    async def change() -> None:
        assert await asyncio.to_thread(found.wait, WITHIN_S)
        await watched.versions.change("two")
        go_on.set()
        await watched.looks()

    run(watched, change)
    assert watched.put == ["one", "two"]


def test_without_its_record_a_version_does_not_stay(watched: Watched) -> None:
    """Else this worker would answer by another one than all the others."""

    def fails(*given: Any) -> None:
        raise DATABASE_ERRORS[0]("INSERT", {}, Exception("the disk is full"))

    watched.database.add_version = fails  # type: ignore[method-assign]

    async def change() -> None:
        with pytest.raises(DATABASE_ERRORS):
            await watched.versions.change("two")
        assert watched.live is not None and watched.live.version == "one"

    run(watched, change)
    assert watched.put == ["one", "two", "one"]


def test_what_another_worker_was_told_is_followed(watched: Watched, tmp_path: Path) -> None:
    other = Database(f"sqlite:///{tmp_path / 'service.sqlite'}")
    watched.looks_up(watched.database.version)

    async def change() -> None:
        await asyncio.to_thread(other.add_version, "two", "of no matter")
        async with asyncio.timeout(WITHIN_S):
            while watched.live is None or watched.live.version != "two":
                await asyncio.sleep(0.01)
        await watched.looks()

    run(watched, change)
    other.close()
    assert watched.put == ["one", "two"] and not watched.versions.refused


def test_a_model_that_answers_no_more_is_let_go(watched: Watched) -> None:
    async def change() -> None:
        assert watched.live is not None
        models, views = weakref.ref(watched.live), weakref.ref(watched.live.retriever)
        gc.disable()  # it happens because of the change, and not by chance
        try:
            await watched.versions.change("two")
            assert models() is None and views() is None
        finally:
            gc.enable()

    run(watched, change)


def test_models_are_loaded_and_looked_at_in_one_thread(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    load = versions_module.load_live

    def noted(*given: Any) -> Live:
        threads.append(threading.current_thread().name)
        return load(*given)

    monkeypatch.setattr(versions_module, "load_live", noted)
    learn = watched.drift.learn

    def looked(retriever: Retriever) -> None:
        threads.append(threading.current_thread().name)
        learn(retriever)

    watched.drift.learn = looked  # type: ignore[method-assign]

    async def change() -> None:
        for version in ("two", "one"):
            await watched.versions.change(version)
            await watched.looks()

    watched.looks_up(watched.database.version)
    watched.load()
    run(watched, change)
    assert len(threads) >= 4 and len(set(threads)) == 1
