"""What /metrics says: click rate by model, drift, alarms that go on once and off once."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
import yaml
from live_servers import serving, until
from prometheus_client.parser import text_string_to_metric_families

from mmrec.cli import main
from mmrec.drift.two_samples import Gap
from mmrec.serving import answering, monitoring
from mmrec.serving import service as watching
from mmrec.serving.app import build_app
from mmrec.serving.client import Client
from mmrec.serving.database import DATABASE_ERRORS, Database
from mmrec.serving.monitoring import Monitoring
from mmrec.serving.schemas import GivenEvent
from mmrec.serving.service import Service
from mmrec.serving.settings import ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'service.sqlite'}"


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Every sample of /metrics as Prometheus reads it, by name and values of labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_events_count_for_the_model_that_made_their_list(
    tiny_run: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ServiceSettings(path=tiny_run, database=url)
    with serving(settings) as (here, _), serving(settings) as (there, _):
        with Client(here) as a, Client(there) as b:
            shown, other = (a.recommend("u1", k=k, keep=True) for k in (3, 2))
            logged = a.recommend("u1", k=3)
            a.recommend(history=["i1"], k=3)  # to nobody by name: not logged, so not counted
            item, event = shown.items[0].item_id, {"user_id": "u1", "request_id": shown.list_id}
            click = GivenEvent(item_id=item, event_id="e-1", **event)
            for sent, accepted in (
                ([click], 1),
                ([click], 0),  # sent twice it counts once
                ([GivenEvent(item_id=item, event_id="e-2", **{**event, "user_id": "u2"})], 1),
                ([GivenEvent(item_id=item, event_id="e-3", **{**event, "request_id": "none"})], 1),
                ([GivenEvent(item_id=item, event_id="e-4", user_id="u1")], 1),
            ):
                assert b.send_events(sent).accepted == accepted
            said = [samples(httpx.get(f"{each}/metrics").text) for each in (here, there)]
    label = str(shown.model)[:12]
    assert said[0]["mmrec_shown_lists_total", label] == 3
    num_items = sum(len(each.items) for each in (shown, other, logged))
    assert said[0]["mmrec_shown_items_total", label] == num_items
    assert said[1]["mmrec_list_events_total", label] == 1
    assert said[0]["mmrec_list_events_total", label] == 0  # it is a rate before the first click
    assert said[0]["mmrec_model", label, tiny_run.name] == 1  # the same label
    # the list's name is kept with the event, and leaves with it
    assert main(["events", url, "--out", str(tmp_path / "log.jsonl"), "--lists"]) == 0
    log = pl.read_ndjson(tmp_path / "log.jsonl").filter(pl.col("event").is_null())
    assert log["request_id"].to_list() == [shown.list_id, shown.list_id, "none", None]


def test_an_event_is_kept_where_its_list_cannot_be_looked_up(
    tiny_run: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> Any:
        raise DATABASE_ERRORS[1]

    with serving(ServiceSettings(path=tiny_run, database=url)) as (address, _):
        with Client(address) as client:
            monkeypatch.setattr(Database, "first_shown", fails)
            event = GivenEvent(user_id="u1", item_id="i1", request_id="some")
            assert client.send_events([event]).accepted == 1


Ask = Callable[[int], Awaitable[list[int]]]


def with_service(
    run: Path, url: str, now: list[float], work: Callable[[Service, Ask], Awaitable[None]]
) -> None:
    """Runs something with a service without a server, whose clock stands still unless moved."""
    service = Service(ServiceSettings(path=run, database=url))
    service.monitoring.clock = lambda: now[0]
    service.load()

    async def go() -> None:
        transport = httpx.ASGITransport(build_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:

            async def ask(times: int) -> list[int]:
                body = {"history": ["i1"], "k": 2}
                return [(await http.post("/v1/recommend", json=body)).status_code
                        for _ in range(times)]  # fmt: skip

            await work(service, ask)
        await service.close()

    asyncio.run(go())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [each.message for each in caplog.records if each.message.startswith("alarm")]
    return [line.partition(":")[0] for line in lines]


@pytest.mark.parametrize(("alarm", "delay_s", "fails"), [("slow", 1.5, False), ("model", 0, True)])
def test_a_slow_or_failing_model_is_told_once_and_cleared_once(
    alarm: str, delay_s: float, fails: bool, tiny_run: Path, url: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    now, whole = [1000.0], answering.recommend_together
    caplog.set_level(logging.WARNING, "mmrec.serving.monitoring")

    def broken(*given: Any, **named: Any) -> Any:
        now[0] += delay_s
        if fails:
            raise RuntimeError("out of order")
        return whole(*given, **named)

    async def work(service: Service, ask: Ask) -> None:
        def look(times: int) -> float:
            for _ in range(times):
                now[0] += 1
                service.monitoring.look(0.0, service.database_fails)
            return samples(service.monitoring.text().decode())["mmrec_alarm", alarm]

        assert await ask(30) == [200] * 30
        assert look(5) == 0 and told(caplog) == []
        monkeypatch.setattr(answering, "recommend_together", broken)
        await ask(25)
        assert look(2) == 0  # two looks may be chance
        assert look(10) == 1 and told(caplog) == [f"alarm {alarm} is on"]
        monkeypatch.setattr(answering, "recommend_together", whole)
        now[0] += 61
        await ask(30)
        assert look(10) == 0
        assert told(caplog) == [f"alarm {alarm} is on", f"alarm {alarm} is off"]
        lists = samples(service.monitoring.text().decode())
        assert lists.get(("mmrec_degraded_lists_total", "model"), 0) == (25 if fails else 0)

    with_service(tiny_run, url, now, work)


def test_a_failing_model_of_a_live_service_is_told_and_cleared(
    tiny_run: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The watch's own looks, ten times as often and over two seconds in place of a minute."""
    monkeypatch.setattr(watching, "LOOK_S", 0.1)
    monkeypatch.setattr(monitoring, "_WINDOW_S", 2.0)
    caplog.set_level(logging.WARNING, "mmrec.serving.monitoring")
    whole = answering.recommend_together

    def broken(*given: Any, **named: Any) -> Any:
        raise RuntimeError("out of order")

    settings = ServiceSettings(path=tiny_run, database=url)
    with serving(settings) as (address, _), httpx.Client(base_url=address, timeout=30) as http:

        def alarm() -> float:
            # -1: it has not been looked at yet
            return samples(http.get("/metrics").text).get(("mmrec_alarm", "model"), -1)

        def ask(degraded: list[str]) -> bool:
            for _ in range(25):
                answer = http.post("/v1/recommend", json={"history": ["i1"], "k": 2})
                assert answer.status_code == 200 and answer.json()["degraded"] == degraded
            return True

        until(lambda: ask([]) and alarm() == 0)
        assert told(caplog) == []
        monkeypatch.setattr(answering, "recommend_together", broken)
        until(lambda: ask(["model"]) and alarm() == 1, 60)
        assert told(caplog) == ["alarm model is on"]
        monkeypatch.setattr(answering, "recommend_together", whole)
        until(lambda: ask([]) and alarm() == 0, 60)
        assert told(caplog) == ["alarm model is on", "alarm model is off"]


def test_drift_is_told_when_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    monitoring, gaps = Monitoring(), {"score_drift": Gap(0.6, 0.3), "unknown_items": Gap(0.1, 0.2)}
    for _ in range(59):
        monitoring.look(0.0, False, gaps)
    assert told(caplog) == []
    for _ in range(5):
        monitoring.look(0.0, False, gaps)
    said = samples(monitoring.text().decode())
    assert said["mmrec_drift", "score_drift"] == 0.6 and said["mmrec_alarm", "score_drift"] == 1
    assert said["mmrec_drift", "unknown_items"] == 0.1 and said["mmrec_alarm", "unknown_items"] == 0
    for _ in range(70):
        monitoring.look(0.0, False)
    assert told(caplog) == ["alarm score_drift is on", "alarm score_drift is off"]


def test_the_service_learns_its_users_and_watches_what_is_asked(tiny_run: Path, url: str) -> None:
    async def work(service: Service, ask: Ask) -> None:
        await service._learn_users()
        assert service.live is not None
        assert service.drift.model_hash == service.live.model_hash
        await ask(200)
        assert set(service.drift.figures()) >= {"popularity_drift", "unknown_items"}

    with_service(tiny_run, url, [0.0], work)


def test_a_model_whose_users_cannot_be_looked_at_answers_all_the_same(
    tiny_run: Path, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(service: Service, ask: Ask) -> None:
        calls: list[Any] = []

        def fails(retriever: Any) -> None:
            calls.append(retriever)
            raise RuntimeError("no users")

        monkeypatch.setattr(service.drift, "learn", fails)
        await service._learn_users()
        await service._learn_users()  # and is not looked at again every second
        assert len(calls) == 1 and service.drift.figures() == {}
        assert await ask(1) == [200]

    with_service(tiny_run, url, [0.0], work)
    assert "drift is not told" in caplog.text


RULES = Path(__file__).resolve().parent.parent / "deploy" / "alerts.yaml"


def test_the_alert_rules_ask_for_what_is_said(tiny_run: Path, url: str) -> None:
    """Every metric, label and alarm that a rule names is there; promtool would not know them."""
    [group] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    monitoring = Monitoring()
    monitoring.answered("/v1/recommend", 200, 0.1)
    monitoring.serves("one", "a" * 64)
    monitoring.shown("a" * 64, 3)
    monitoring.followed("a" * 64)
    monitoring.look(0.0, False)
    said: dict[str, set[str]] = {"up": {"job", "instance"}}
    alarms: set[str] = set()
    families = list(text_string_to_metric_families(monitoring.text().decode()))
    for family in families:
        for sample in family.samples:
            said.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
            alarms |= {sample.labels["alarm"]} if sample.name == "mmrec_alarm" else set()
    names = [rule["alert"] for rule in group["rules"]]
    assert len(set(names)) == len(names) > 5
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[sm]", rule["for"]) and rule["labels"]["severity"]
        text = rule["expr"]
        assert text.count("(") == text.count(")")
        asked = re.findall(r"\b(up|mmrec_\w+)\b(?:\{([^}]*)\})?", text)
        assert asked, rule["alert"]
        for metric, matchers in asked:
            labels = set(re.findall(r"(\w+)\s*=", matchers))
            grouped = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", text))))
            assert labels | grouped <= said[metric], (rule["alert"], metric)
        for named in re.findall(r'alarm=~?"([^"]+)"', text):
            assert set(named.split("|")) <= alarms
    page = (RULES.parent.parent / "docs" / "scaling-out.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Mmrec\w+)`", page)) == set(names)
    assert set(re.findall(r"`(mmrec_\w+)", page)) >= {"mmrec_alarm", "mmrec_drift"}
    known = {f"{each.name}{ending}" for each in families for ending in ("", "_total")}
    assert set(re.findall(r"`(mmrec_\w+)", page)) <= known
