"""Parts of the service by themselves: lines, keys, database, alarms, settings."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrec.errors import ConfigError, UserError
from mmrec.serving import extra
from mmrec.serving.auth import Keys, add_key, read_keys, remove_key
from mmrec.serving.batching import Batcher
from mmrec.serving.client import Client
from mmrec.serving.database import Database, Event, StoredItem, StoredMedium
from mmrec.serving.faults import Fault
from mmrec.serving.growing import Chained, GrowingRows
from mmrec.serving.limits import BodyLimits
from mmrec.serving.monitoring import Alarm, Monitoring
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["live_servers"]


def line(run: Callable[[list[int]], Any], **options: Any) -> Batcher[int, int]:
    settings = {"max_batch": 4, "max_waiting": 8, "timeout_s": 5.0} | options
    return Batcher(run, name="lists", **settings)


def test_jobs_that_wait_go_together_and_each_gets_its_own_result() -> None:
    sizes: list[int] = []

    def run(jobs: list[int]) -> list[int | Exception]:
        sizes.append(len(jobs))
        time.sleep(0.01)
        return [ValueError("odd") if job == 3 else 10 * job for job in jobs]

    async def ask() -> list[Any]:
        batcher = line(run)
        answers = [batcher.submit(job) for job in range(6)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        batcher.close()
        return found

    found = asyncio.run(ask())
    assert isinstance(found[3], ValueError)
    assert [each for each in found if isinstance(each, int)] == [0, 10, 20, 40, 50]
    assert sizes == [4, 2]


def test_a_full_line_refuses_and_says_when_to_come_again() -> None:
    held = threading.Event()

    def run(jobs: list[int]) -> list[int]:
        held.wait(5)
        return jobs

    async def ask() -> list[Any]:
        batcher = line(run, max_batch=1, max_waiting=2)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.01)  # it is being done, so it waits no longer
        answers = [asyncio.create_task(batcher.submit(job)) for job in range(1, 5)]
        await asyncio.sleep(0.01)
        held.set()
        found = await asyncio.gather(first, *answers, return_exceptions=True)
        batcher.close()
        return found

    found = asyncio.run(ask())
    assert found[:3] == [0, 1, 2]
    for refused in found[3:]:
        assert isinstance(refused, Fault) and refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1  # type: ignore[index]


def test_who_waits_too_long_is_refused_and_his_job_is_not_done() -> None:
    done: list[int] = []

    def run(jobs: list[int]) -> list[int]:
        done.extend(jobs)
        time.sleep(0.1)
        return jobs

    async def ask() -> list[Any]:
        batcher = line(run, max_batch=1, timeout_s=0.05)
        found = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
        await asyncio.sleep(0.15)
        batcher.close()
        return found

    assert all(isinstance(each, Fault) and each.status_code == 429 for each in asyncio.run(ask()))
    assert done == [0]


def test_a_run_that_fails_fails_its_batch_alone() -> None:
    def run(jobs: list[int]) -> list[int]:
        if 1 in jobs:
            raise RuntimeError("broken")
        return jobs

    async def ask() -> list[Any]:
        batcher = line(run, max_batch=2)
        found = await asyncio.gather(*map(batcher.submit, range(4)), return_exceptions=True)
        batcher.close()
        return found

    found = asyncio.run(ask())
    assert all(isinstance(each, RuntimeError) for each in found[:2]) and found[2:] == [2, 3]


def test_keys_say_who_may_do_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys.json"
    reader = add_key(file, "page", "read", days=None, per_minute=600)
    writer = add_key(file, "shop", "write", days=1, per_minute=12)
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    assert reader not in text and writer not in text
    keys = Keys(read_keys(file))
    assert keys.allow(f"Bearer {reader}", "read") == "page"
    assert keys.allow(f"bearer {writer}", "read") == "shop"
    for given, role, status in (
        (None, "read", 401),
        ("Basic abc", "read", 401),
        (f"Bearer {reader}x", "read", 401),
        (f"Bearer {reader}", "write", 403),
        (f"Bearer {writer}", "admin", 403),
        (f"Bearer {writer}", "write", 429),  # a second's worth of its rate is spent
    ):
        with pytest.raises(Fault) as refused:
            keys.allow(given, role)  # type: ignore[arg-type]
        assert refused.value.status_code == status
        assert reader not in refused.value.message
    at = time.time() + 2 * 86_400
    monkeypatch.setattr(time, "time", lambda: at)
    with pytest.raises(Fault, match="expired"):
        keys.allow(f"Bearer {writer}", "read")
    assert Keys(None).allow(None, "admin") is None


def test_a_key_comes_back_to_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    key = add_key(tmp_path / "keys.json", "a", "read", days=None, per_minute=60)
    keys = Keys(read_keys(tmp_path / "keys.json"))
    for _ in range(5):
        keys.allow(f"Bearer {key}", "read")
    with pytest.raises(Fault) as refused:
        keys.allow(f"Bearer {key}", "read")
    assert refused.value.headers == {"Retry-After": "1"}
    now += 1.0
    keys.allow(f"Bearer {key}", "read")


def test_files_of_keys_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(file)
    file.write_text("{}")
    with pytest.raises(ConfigError, match="keys: Field required"):
        read_keys(file)
    file.unlink()
    add_key(file, "a", "read", days=None, per_minute=1)
    with pytest.raises(ConfigError, match="already"):
        add_key(file, "a", "read", days=None, per_minute=1)
    with pytest.raises(ConfigError, match="only a"):
        remove_key(file, "b")
    remove_key(file, "a")
    assert read_keys(file) == []


def test_other_hosts_need_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--keys"):
        ServiceSettings(path=tmp_path, database="sqlite://", host="0.0.0.0")
    for host in ("127.0.0.1", "::1", "localhost"):
        ServiceSettings(path=tmp_path, database="sqlite://", host=host)
    ServiceSettings(path=tmp_path, database="sqlite://", host="0.0.0.0", keys=tmp_path / "k")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'a.sqlite'}"
    else:
        yield request.getfixturevalue("postgresql_url")


def event(number: int, user: str = "u") -> Event:
    return Event(f"e{number}", user, f"i{number}", value=0.5, time=7.0, context={"device": "tv"})


def item(item_id: str, digest: str = "d") -> StoredItem:
    media = [StoredMedium("image0", "image", "png", b"\x00\x01")]
    return StoredItem(item_id, {"title": "T"}, {"year": 3}, media, {"v": [0.5]}, digest)


def test_two_workers_see_what_either_writes(url: str) -> None:
    one, other = Database(url), Database(url)
    one.prepare()
    other.prepare()
    assert one.add_events([event(1), event(2), event(2)]) == {"e1", "e2"}
    assert other.add_events([event(2), event(3), event(4, "w")]) == {"e3", "e4"}
    found = one.events_of(["u", "nobody"])
    assert [each.item_id for each in found["u"]] == ["i1", "i2", "i3"] and not found["nobody"]
    assert found["u"][0].context == {"device": "tv"} and found["u"][0].value == 0.5
    assert [each.event_id for each in one.all_events()] == ["e1", "e2", "e3", "e4"]
    assert one.numbers()["items"] == 0
    vector = {"model_hash": "m", "modalities": ["image"], "content": b"\x00\x00\x80\x3f"}
    assert one.add_item(item("a"), **vector) and not other.add_item(item("a"), **vector)
    assert other.add_item(item("a", "other"), **vector)
    other.list_item("a", False)
    one.list_item("of-old", False)
    changes = other.item_changes(0, "m")
    assert [(each.item_id, each.what) for each in changes] == [
        ("a", "added"), ("a", "added"), ("a", "removed"), ("of-old", "removed"),
    ]  # fmt: skip
    assert changes[0].content == vector["content"] and changes[0].texts == {"title": "T"}
    assert one.numbers()["items"] >= changes[-1].number
    [unknown, *_] = other.item_changes(0, "another model")
    assert unknown.content is None
    assert one.item(unknown.number) == item("a")
    for _ in range(2):
        one.add_vector(
            unknown.number, model_hash="another model", modalities=["image"], content=b"1234"
        )
    assert other.item_changes(0, "another model")[0].content == b"1234"
    one.keep_popular([("a", None, 3.0), ("b", "B", 2.0), ("of-old", None, 1.0)])
    assert other.popular() == [("b", "B", 2.0)]
    assert one.version() is None
    one.add_version("run-2", "m2")
    assert other.version() == "run-2"
    one.close()
    other.close()


def test_numbers_are_read_in_the_order_of_their_writing(url: str) -> None:
    """Many writers at once: whoever reads up to a number has missed none below it."""
    writers = [Database(url) for _ in range(3)]
    for each in writers:
        each.prepare()
    stop = threading.Event()
    seen: list[int] = []

    def watch() -> None:
        reader, last = Database(url), 0
        while not stop.is_set() or reader.item_changes(last, "m"):
            changes = reader.item_changes(last, "m")
            seen.extend(each.number for each in changes)
            last = max([last, *(each.number for each in changes)])
        reader.close()

    def write(writer: Database, name: int) -> None:
        for number in range(8):
            writer.list_item(f"{name}-{number}", False)

    threads = [threading.Thread(target=write, args=(w, n)) for n, w in enumerate(writers)]
    watcher = threading.Thread(target=watch)
    for each in (watcher, *threads):
        each.start()
    for each in threads:
        each.join()
    stop.set()
    watcher.join()
    assert seen == sorted(seen) and len(seen) == 24
    for each in writers:
        each.close()


@pytest.mark.parametrize("wrong", ["nonsense", "mysql://a/b", "oracle:x"])
def test_urls_of_no_known_kind(wrong: str) -> None:
    with pytest.raises(UserError, match="sqlite:///FILE"):
        Database(wrong)


def test_an_alarm_goes_on_once_and_off_once(caplog: pytest.LogCaptureFixture) -> None:
    alarm = Alarm("slow", 1.0, "too slow")
    values = [2, 0, 2, 2, 0, 2, 2, 2, 2, 2, 0, 2, 0, 0, 2, 0, 0, 0, 0]
    told = [place for place, value in enumerate(values) if alarm.look(value)]
    assert told == [7, 17] and not alarm.is_on
    assert [each.message.split(":")[0] for each in caplog.records] == [
        "alarm slow is on", "alarm slow is off",
    ]  # fmt: skip


def test_rows_grow_without_moving_what_is_there() -> None:
    grown, moved = GrowingRows(torch.arange(3.0)[:, None]), 0
    expected, place = torch.arange(3.0)[:, None], grown.rows.data_ptr()
    for number in range(1000):
        before = grown.rows
        row = torch.full((1, 1), float(number))
        grown.append(row)
        expected = torch.cat([expected, row])
        assert len(before) == len(expected) - 1
        moved += grown.rows.data_ptr() != place
        place = grown.rows.data_ptr()
    torch.testing.assert_close(grown.rows, expected)
    assert moved <= 10  # the room doubles
    assert list(Chained("ab", "cd")) == ["a", "b", "c", "d"]


def test_the_client_needs_no_torch() -> None:
    code = (
        "import mmrec.serving.client, sys\n"
        "print([name for name in ('torch', 'polars') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert Client.__doc__


def test_without_the_extra_a_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrec.cli import main

    found = extra.find_spec
    monkeypatch.setattr(
        extra, "find_spec", lambda name: None if name == "sqlalchemy" else found(name)
    )
    for command in (["serve", str(tmp_path)], ["events", "sqlite:///a", "--out", "a.csv"],
                    ["keys", "add", "keys.json", "--name", "a"]):  # fmt: skip
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "sqlalchemy" in told and "pip install 'mmrec[serve]'" in told


def test_keys_are_made_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrec.cli import main

    file = str(tmp_path / "keys.json")
    assert main(["keys", "add", file, "--name", "shop", "--role", "write", "--days", "30"]) == 0
    key = capsys.readouterr().out.strip()
    assert Keys(read_keys(Path(file))).allow(f"Bearer {key}", "write") == "shop"
    assert main(["keys", "remove", file, "--name", "page"]) == 2
    assert "shop" in capsys.readouterr().err
    assert json.loads(Path(file).read_text())["keys"][0]["expires"] > time.time()
    assert main(["serve", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "--keys" in capsys.readouterr().err
    assert main(["serve", str(tmp_path)]) == 2
    assert "holds no finished model" in capsys.readouterr().err


def test_a_failing_and_slow_minute_sets_alarms_that_clear(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monitoring = Monitoring()

    def alarms() -> set[str]:
        lines = monitoring.text().decode().splitlines()
        on = [line for line in lines if line.startswith("mmrec_alarm{") and line.endswith(" 1.0")]
        return {line.split('"')[1] for line in on}

    for _ in range(50):
        monitoring.answered("/v1/recommend", 500, 2.0)
    for _ in range(2):
        monitoring.look(0.0, database_fails=False)
    assert alarms() == set()
    for _ in range(5):
        monitoring.look(0.9, database_fails=True)
    assert alarms() == {"errors", "slow", "full", "database"}
    now += 61.0
    for _ in range(3):
        monitoring.look(0.0, database_fails=False)
    assert alarms() == set()
    told = [each.message.partition(":")[0] for each in caplog.records]
    assert sorted(told) == sorted(
        f"alarm {name} is {state}"
        for name in ("errors", "slow", "full", "database")
        for state in ("on", "off")
    )


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(Fault) as refused:
            await receive()
            await receive()
        assert refused.value.status_code == 408
        sent.append("refused")

    async def receive() -> dict[str, Any]:
        if not sent:
            sent.append("began")
            return {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.sleep(5)
        raise AssertionError

    async def send(message: Any) -> None:
        raise AssertionError(message)

    sent: list[str] = []
    guarded = BodyLimits(app, Limits(body_timeout_s=0.05), frozenset())
    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "path": "/v1/recommend", "method": "POST", "headers": headers}
    asyncio.run(guarded(scope, receive, send))
    assert sent == ["began", "refused"]
