"""Live servers on loopback: two workers on one database, swaps, failures, the client, the log."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import yaml
from live_servers import PostgreSQL, serving
from tiny_run import CATALOGUE

from data_prep.prepare import prepare
from data_prep.shards import PreparedData
from mmrec.cli import main
from mmrec.errors import MmrecError
from mmrec.recommender import Recommender
from mmrec.retrieval.export import export_run
from mmrec.serving import answering, versions
from mmrec.serving.auth import add_key
from mmrec.serving.batching import Batched
from mmrec.serving.client import Client, ServiceError
from mmrec.serving.schemas import GivenEvent, HistoryItem
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings
from mmrec.serving.swap import CheckFailed

pytest_plugins = ["tiny_run", "live_servers"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'service.sqlite'}"


@pytest.fixture(scope="module")
def models(tiny_run: Path, tiny_run_cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two versions and a broken one."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(tiny_run, folder / "one")
    shutil.copytree(tiny_run_cut, folder / "two")
    shutil.copytree(tiny_run, folder / "broken")
    (folder / "broken/checkpoints/final/model.safetensors").write_bytes(b"no weights")
    return folder


def ids(answer: Any) -> list[str]:
    return [each.item_id for each in answer.items]


def until(true: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_one_worker_is_told_the_other_knows_at_once(
    tiny_run: Path, tiny_source: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encodes_again(*given: Any) -> None:
        raise AssertionError("the vector is in the database")

    monkeypatch.setattr(answering, "_encode_stored", encodes_again)
    settings = ServiceSettings(path=tiny_run, database=url)
    with (
        serving(settings) as (here, _),
        serving(settings) as (there, _),
        Client(here) as a,
        Client(there) as b,
    ):
        files = {"poster": tiny_source / "2.png", "sound": tiny_source / "6.wav"}
        for number in range(3):
            name, fields = f"new {number}", {"title": f"The quiet river {number}"}
            assert a.add_item(name, fields=fields, files=files).created
            listed = b.recommend("u1", k=30, wishes={"unmet": True})
            assert name in ids(listed) and not listed.degraded
            assert name in ids(b.similar(text="the quiet river", k=30))
            for by in ("lexical", "dense", "hybrid"):
                assert name in ids(b.search(f"river {number}", by=by, k=30))  # type: ignore[arg-type]
            assert ids(b.search(f"river {number}", by="lexical", k=1)) == [name]
            both = [each.embed(item_ids=[name]).items[0].content for each in (a, b)]
            assert both[0] == both[1] == a.embed_media(fields=fields, files=files).items[0].content
        first = next(each for each in ids(b.recommend("u1", k=30)) if not each.startswith("new"))
        assert b.send_events([GivenEvent(user_id="u1", item_id=first)]).accepted == 1
        assert first not in ids(a.recommend("u1", k=30))
        for stock in (False, True, False):
            assert b.list_item("new 1", stock).changed
            assert ("new 1" in ids(a.recommend("u1", k=30))) == stock
            for by in ("lexical", "dense", "hybrid"):
                assert ("new 1" in ids(a.search("quiet river 1", by=by, k=30))) == stock  # type: ignore[arg-type]
        assert ids(a.recommend("u1", k=30)) == ids(b.recommend("u1", k=30))
    with serving(settings) as (again, _), Client(again) as client:  # what was told is kept
        listed = ids(client.recommend("u1", k=30))
        assert {"new 0", "new 2"} <= set(listed) and not {"new 1", first} & set(listed)


def test_the_client_says_what_was_refused_and_asks_as_the_library(
    tiny_run: Path, url: str, tiny_source: Path
) -> None:
    recommender = Recommender.load(tiny_run)
    settings = ServiceSettings(path=tiny_run, database=url)
    with serving(settings) as (address, _), Client(address) as client:
        found = client.recommend(history=["i1", HistoryItem(item_id="i4", time=9.0)], k=3)
        expected = recommender.recommend(history=["i1", ("i4", None, 9.0)], k=3)
        assert ids(found) == [each.item_id for each in expected]
        picture = tiny_source / "7.png"
        for asked in (
            {"text": "sea"},
            {"text": "the quiet sea", "by": "lexical", "history": ["i1"], "mix": 0.7},
            {"text": "sea", "image": picture, "history": ["i1", "i4"]},
        ):
            expected = recommender.search(k=3, **asked)  # type: ignore[arg-type]
            answer = client.search(k=3, **asked)  # type: ignore[arg-type]
            assert ids(answer) == [each.item_id for each in expected]
            assert [each.found_by for each in answer.items] == [each.found_by for each in expected]
        with pytest.raises(ServiceError, match="text") as refused:
            client.search()
        assert refused.value.status == 422
        scored = client.score(user_ids=["u1", "u2"], files={"poster": tiny_source / "3.png"})
        assert {each.user_id for each in scored.users} == {"u1", "u2"}
        near = client.similar_to_media(files={"poster": (tiny_source / "7.png").read_bytes()}, k=2)
        assert len(near.items) == 2
        with pytest.raises(ServiceError, match="k") as refused:
            client.recommend("u1", k=0)
        assert refused.value.status == 422 and refused.value.field == "k"
        with pytest.raises(ServiceError) as refused:
            client.add_item("a", files={"poster": b"no picture"})
        assert refused.value.code == "broken_medium" and refused.value.field == "poster"
        assert client.ready().status == "ok"
    with Client(address, tries=1) as client, pytest.raises(ServiceError) as refused:
        client.ready()
    assert refused.value.status == 0


def test_keys_guard_the_routes(tiny_run: Path, url: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    read = add_key(keys, "page", "read", days=None, per_minute=6000)
    write = add_key(keys, "shop", "write", days=None, per_minute=6000)
    admin = add_key(keys, "ops", "admin", days=None, per_minute=6000)
    late = add_key(keys, "old", "admin", days=0, per_minute=6000)
    settings = ServiceSettings(path=tiny_run, database=url, keys=keys)
    event = {"events": [{"user_id": "u", "item_id": "i1"}]}
    routes = (
        ("POST", "/v1/recommend", {}, 0),
        ("GET", "/metrics", None, 0),
        ("POST", "/v1/events", event, 1),
        ("PUT", "/v1/items/i1", {"listed": True}, 1),
        ("POST", "/v1/model", {"version": "run"}, 2),
        ("GET", "/healthz", None, -1),
    )
    callers = ((-1, None), (-1, "wrong"), (-1, late), (0, read), (1, write), (2, admin))
    with serving(settings) as (address, _), httpx.Client(base_url=address) as http:
        for method, path, body, level in routes:
            for rank, key in callers:
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                answer = http.request(method, path, json=body, headers=headers)
                expected = 200 if rank >= level else 401 if rank < 0 else 403
                assert answer.status_code == expected, (path, rank, answer.text)


def test_a_version_is_swapped_under_load_and_every_worker_follows(
    models: Path, url: str, tiny_source: Path
) -> None:
    settings = ServiceSettings(path=models / "one", models=models, database=url)
    expected = {}
    for name in ("one", "two"):
        recommender = Recommender.load(models / name)
        expected[recommender.model_hash] = [
            each.item_id for each in recommender.recommend("u2", k=4)
        ]
    assert len({tuple(each) for each in expected.values()}) == 2
    hashes = list(expected)
    stop, wrong, models_seen = threading.Event(), list[Any](), set[str]()

    def ask(address: str) -> None:
        with httpx.Client(base_url=address) as http:
            while not stop.is_set():
                answer = http.post(
                    "/v1/recommend", json={"user_id": "u2", "k": 4, "wishes": {"without": ["n"]}}
                )
                found = answer.json()
                models_seen.add(found.get("model"))
                listed = [each["item_id"] for each in found.get("items", [])]
                if answer.status_code != 200 or listed != expected.get(found["model"]):
                    wrong.append(answer.text)

    with (
        serving(settings) as (here, _),
        serving(settings) as (there, other),
        Client(here) as client,
        Client(there) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        client.add_item("n", files={"poster": tiny_source / "2.png"})
        asking = [pool.submit(ask, address) for address in (here, there)]
        try:
            with pytest.raises(ServiceError, match="does not pass") as refused:
                client.change_model("broken")
            assert refused.value.status == 409
            assert client.ready().version == "one" and client.ready().status == "ok"
            assert client.change_model("two").model == hashes[1]
            until(lambda: second.ready().version == "two")
            time.sleep(0.1)
        finally:
            stop.set()
        for each in asking:
            each.result()
        assert not wrong and models_seen == set(hashes)
        # the added item lives in the new space now, the same for both
        vectors = [each.embed(item_ids=["n"]) for each in (client, second)]
        assert vectors[0] == vectors[1] and vectors[0].model == hashes[1]
        assert other.live is not None and other.live.version == "two"
    with serving(settings) as (again, _), Client(again) as client:
        assert client.ready().version == "two"


def test_a_version_that_fails_in_place_is_rolled_back(
    models: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(retriever: Any) -> None:
        raise CheckFailed("it does not answer")

    monkeypatch.setattr(versions, "check", fails)
    settings = ServiceSettings(path=models / "one", models=models, database=url)
    with serving(settings) as (address, service), Client(address) as client:
        before = client.recommend("u2")
        with pytest.raises(ServiceError, match="does not answer"):
            client.change_model("two")
        after = client.recommend("u2")
        assert after.model_copy(update={"request_id": before.request_id}) == before
        assert service.database.version() is None


def test_without_its_model_the_service_lists_what_is_popular(
    tiny_run: Path, url: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    settings = ServiceSettings(path=run, database=url)
    weights = run / "checkpoints/final/model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"broken")
    with pytest.raises(MmrecError):
        Service(settings).load()  # nothing is known yet that could be listed
    weights.write_bytes(kept)
    with serving(settings) as (address, service), Client(address) as client:
        popular = ids(client.recommend(k=5))

        def fails(*args: Any) -> None:
            raise RuntimeError("out of memory")

        assert service.live is not None
        service.live.retriever.model.query = fails  # type: ignore[method-assign]
        answer = client.recommend("u2", k=5)
        assert answer.degraded == ["model"] and answer.basis == "popularity"
        assert answer.model is None
    weights.unlink()
    with serving(settings) as (address, _), Client(address, tries=1) as client:
        assert client.ready().status == "degraded"
        answer = client.recommend("nobody", k=5)
        assert ids(answer) == popular and answer.degraded == ["model"]
        client.send_events([GivenEvent(user_id="nobody", item_id=popular[0])])
        client_answer = client.recommend("nobody", k=4, wishes={"without": [popular[2]]})
        assert ids(client_answer)[:2] == [popular[1], popular[3]]
        with pytest.raises(ServiceError) as refused:
            client.search("sea")
        assert refused.value.status == 503


def test_a_bundle_serves_like_its_run(tiny_run: Path, url: str, tmp_path: Path) -> None:
    export_run(tiny_run, tmp_path / "export", formats=("npy",), bundle=True)
    recommender = Recommender.load(tiny_run)
    settings = ServiceSettings(path=tmp_path / "export/bundle", database=url)
    with serving(settings) as (address, _), Client(address) as client:
        item = ids(client.recommend("u4", k=1))[0]
        client.send_events([GivenEvent(user_id="u4", item_id=item)])
        found = ids(client.recommend("u4", k=3))
    expected = [each.item_id for each in recommender.recommend("u4", k=4)]
    assert expected[0] == item and set(found) == set(expected[1:])


def test_events_become_a_log_that_prepare_takes(
    tiny_run: Path, tiny_source: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = [("u1", "i1"), ("u1", "i5"), ("new", "i2"), ("new", "i3"), ("new", "i4")]
    with serving(ServiceSettings(path=tiny_run, database=url)) as (address, _):
        with Client(address) as client:
            client.send_events([GivenEvent(user_id=user, item_id=item) for user, item in sent])
            before = client.recommend("new", k=3)
            shown = client.recommend("new", k=3, keep=True)
            assert ids(client.recommend("new", k=3)) == ids(shown) == ids(before)
            with pytest.raises(ServiceError, match="keep"):
                client.recommend(history=["i1"], keep=True)
    catalogue = tiny_source.parent / "catalogue.yaml"
    out = tmp_path / "log.csv"
    assert main(["events", url, "--out", str(out), "--catalogue", str(catalogue)]) == 0
    assert "5 events of 2 users" in capsys.readouterr().out
    log, new = pl.read_csv(tiny_source / "log.csv"), pl.read_csv(out)
    assert new.columns == [CATALOGUE["interactions"][name] for name in ("user", "item", "order")]
    assert list(zip(new["user"], new["item"], strict=True)) == sent
    source = tmp_path / "source"
    shutil.copytree(tiny_source, source)
    pl.concat([log, new.cast(log.schema)]).write_csv(source / "log.csv")  # type: ignore[arg-type]
    prepare(catalogue, source, tmp_path / "data", num_workers=1)
    data = PreparedData.open(tmp_path / "data")
    user = data.user_index_of("new")
    assert user is not None
    full = data.split().full
    history = full.read(full.user_index.tolist().index(user))
    assert [data.items.item_ids[row] for row in history.item_index] == ["i2", "i3", "i4"]
    assert main(["events", url, "--out", str(tmp_path / "log.txt")]) == 2
    assert ".csv" in capsys.readouterr().err
    for ending in ("jsonl", "parquet"):
        assert main(["events", url, "--out", str(tmp_path / f"log.{ending}")]) == 0
    whole = pl.read_parquet(tmp_path / "log.parquet")
    assert whole["order"].is_sorted() and len(whole) == 8
    kept = whole.filter(pl.col("event") == "shown")
    assert kept["item_id"].to_list() == ids(shown)
    places = [json.loads(each) for each in kept["context"]]
    assert [each["rank"] for each in places] == ["1", "2", "3"]
    assert {each["list_id"] for each in places} == {shown.list_id}
    with_shown = yaml.safe_load(catalogue.read_text())
    with_shown["interactions"] |= {"event": "event", "shown": ["shown"]}
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(with_shown))
    command = ["events", url, "--out", str(out), "--catalogue", str(tmp_path / "shown.yaml")]
    assert main(command) == 0
    assert pl.read_csv(out)["event"].to_list() == [None] * 5 + ["shown"] * 3


@pytest.mark.slow
def test_no_event_is_lost_while_the_database_stops_and_starts(
    tiny_run: Path, postgresql: PostgreSQL, postgresql_url: str
) -> None:
    settings = ServiceSettings(path=tiny_run, database=postgresql_url)
    accepted: list[str] = []
    stop = threading.Event()
    statuses: set[int] = set()

    def send(worker: int, address: str) -> None:
        number = 0
        with httpx.Client(base_url=address, timeout=20) as http:
            while not stop.is_set():
                event = {"user_id": f"s{worker}", "item_id": "i1", "event_id": f"{worker}-{number}"}
                answer = http.post("/v1/events", json={"events": [event]})
                listed = http.post("/v1/recommend", json={"user_id": "u1", "k": 3})
                statuses.update((answer.status_code, listed.status_code))
                if answer.status_code == 200:
                    accepted.append(event["event_id"])
                    number += 1

    with serving(settings) as (here, service), serving(settings) as (there, _):
        with ThreadPoolExecutor(4) as pool:
            sending = [pool.submit(send, n, (here, there)[n % 2]) for n in range(4)]
            try:
                time.sleep(1)
                postgresql.stop()
                time.sleep(2)
                with Client(here, tries=1) as client:
                    assert client.recommend("u1").degraded == ["database"]
                    until(lambda: client.ready().status == "degraded")
                before = len(accepted)
                postgresql.start()
                until(lambda: len(accepted) > before + 20, 20.0)
            finally:
                stop.set()
            for each in sending:
                each.result()
        kept = {each.event_id for each in service.database.all_events()}
    assert set(accepted) <= kept and statuses == {200, 503}
    assert len(kept) <= len(accepted) + 4  # at most what was on its way


BATCH_S = 0.02


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each batch began, of a model that takes 20 ms for it."""
    times: list[float] = []
    follow = answering.follow

    def slow(*given: Any) -> None:
        times.append(time.monotonic())
        time.sleep(BATCH_S)
        follow(*given)

    monkeypatch.setattr(answering, "follow", slow)
    return times


@pytest.mark.slow
def test_beyond_what_it_can_hold_nothing_comes_but_429(
    begun: list[float], tiny_run: Path, url: str
) -> None:
    """Times are judged in batches, which a busy machine slows down as it does all else."""
    in_line = 4
    settings = ServiceSettings(
        path=tiny_run, database=url, max_batch=1, max_waiting=in_line,
        timeout_s=240, log_lists="later",  # no disk is judged here
    )  # fmt: skip
    answers: list[tuple[int, float]] = []
    waited: list[float] = []

    def ask(http: httpx.Client) -> None:
        for _ in range(15):
            asked_at = time.monotonic()
            answer = http.post("/v1/recommend", json={"user_id": "u1", "k": 3})
            answers.append((answer.status_code, time.monotonic() - asked_at))
            assert answer.status_code == 200 or int(answer.headers["Retry-After"]) >= 1

    with ExitStack() as stack:
        address, service = stack.enter_context(serving(settings))
        told = service.lists.on_batch

        def also(batched: Batched) -> None:
            waited.extend(batched.waited_s)
            told(batched)

        service.lists.on_batch = also
        pool = stack.enter_context(ThreadPoolExecutor(12))
        # none gives up: a service that never answers is what the test's own limit is for
        callers = [
            stack.enter_context(httpx.Client(base_url=address, timeout=None)) for _ in range(12)
        ]
        for each in [pool.submit(ask, http) for http in callers]:
            each.result()
    assert len(answers) == 12 * 15 and {status for status, _ in answers} == {200, 429}
    taken = [seconds for status, seconds in answers if status == 200]
    assert len(taken) == len(begun) == len(waited)  # nothing is done for whoever is refused
    # Whoever joined the line found at most three in it and one being answered. So the batch five
    # before his own was over by then.
    for place in range(in_line + 1, len(begun)):
        assert waited[place] <= begun[place] - begun[place - in_line - 1]
    # By the callers' clocks: how many of them were on the way to an answer, on average. Were all
    # twelve let in, it would be twelve.
    assert sum(taken) < 10 * (begun[-1] - begun[0] + BATCH_S)
