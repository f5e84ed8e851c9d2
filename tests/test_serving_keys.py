"""Who may do what, on a live service: keys on every route, rates, TLS; what is never decoded."""

from __future__ import annotations

import hmac
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_servers import free_port, serving, until

from mmrec.retrieval import content
from mmrec.serving import auth, given_items
from mmrec.serving.auth import add_key
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]
OPEN = {"/healthz", "/readyz"}
WRITE = {
    ("POST", "/v1/events"), ("POST", "/v1/items"), ("PUT", "/v1/items/{item_id}"),
    ("DELETE", "/v1/items/{item_id}"),
}  # fmt: skip
ADMIN = {("POST", "/v1/model")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def keys(folder: Path) -> dict[str, str]:
    """Keys by name, of a file that has them all."""
    file, made = folder / "keys.json", {}
    for name, role, days, per_minute in (
        ("page", "read", None, 60_000), ("shop", "write", 1.0, 60_000),
        ("ops", "admin", None, 60_000), ("old", "admin", 0.0, 60_000), ("slow", "read", None, 60),
    ):  # fmt: skip
        made[name] = add_key(file, name, role, days=days, per_minute=per_minute)  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module")
def http(tiny_run: Path, folder: Path, keys: dict[str, str]) -> Iterator[httpx.Client]:
    settings = ServiceSettings(
        path=tiny_run, database=f"sqlite:///{folder / 'service.sqlite'}",
        keys=folder / "keys.json", limits=Limits(max_pixels=250_000, max_audio_s=60.0),
    )  # fmt: skip
    with serving(settings) as (address, _), httpx.Client(base_url=address, timeout=30) as http:
        yield http


def with_key(key: str | bytes | None) -> dict[str, Any]:
    given = key.encode() if isinstance(key, str) else key
    return {} if given is None else {"Authorization": b"Bearer " + given}


def refuses(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"} and error["code"] == code
    assert error["message"].isprintable() and 0 < len(error["message"]) <= 200


def test_every_route_asks_for_a_key_of_its_role(http: httpx.Client, keys: dict[str, str]) -> None:
    document = http.get("/openapi.json").json()
    routes = [(method.upper(), path) for path, found in document["paths"].items()
              for method in found]  # fmt: skip
    assert len(routes) >= 20 and {*WRITE, *ADMIN} <= set(routes)
    for method, path in routes:
        place = path.replace("{item_id}", "i1").replace("{user_id}", "u1")
        more: dict[str, Any] = {}
        if method in ("POST", "PUT"):
            takes = document["paths"][path][method.lower()]["requestBody"]["content"]
            is_form = "multipart/form-data" in takes
            more = {"files": {"k": (None, "0")}} if is_form else {"json": {}}
        needed = 2 if (method, path) in ADMIN else 1 if (method, path) in WRITE else 0
        for key, code in ((None, "no_key"), ("wrong", "wrong_key"), (keys["old"], "expired_key")):
            answer = http.request(method, place, headers=with_key(key), **more)
            if path in OPEN:
                assert answer.status_code == 200
                continue
            refuses(answer, 401, code)
            assert answer.headers["www-authenticate"] == "Bearer"
        for rank, name in enumerate(("page", "shop", "ops")):
            answer = http.request(method, place, headers=with_key(keys[name]), **more)
            if rank < needed:
                refuses(answer, 403, "role")
                assert name in answer.json()["error"]["message"]
            else:  # let through, to be told what is wrong with an empty question
                assert answer.status_code in (200, 404, 422), (method, path, answer.text)


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/events", "/v1/items", "/v1/no/such"])
def test_a_stranger_is_refused_before_his_body_is_read(path: str, http: httpx.Client) -> None:
    """Whatever he sends: no JSON, no form, or a body that never ends."""
    for kind in ("application/json", "multipart/form-data; boundary=b", "text/plain"):
        refuses(http.post(path, content=b"{", headers={"Content-Type": kind}), 401, "no_key")
    host = (http.base_url.host, http.base_url.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(host, timeout=20) as line:
        line.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())  # and nothing behind it
        assert line.recv(64).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "key",
    [b"\xff\xfe", b"'; DROP TABLE keys; --", b"\"", b"x" * 10_000, b"mmrec_", b"../../keys.json"],
    ids=["no-ascii", "quotes", "quote", "long", "prefix", "path"],
)  # fmt: skip
def test_a_key_that_is_none(key: bytes, http: httpx.Client) -> None:
    refuses(http.post("/v1/recommend", json={}, headers=with_key(key)), 401, "wrong_key")


def test_beyond_its_rate_a_key_waits_and_others_do_not(
    http: httpx.Client, keys: dict[str, str]
) -> None:
    slow, page = with_key(keys["slow"]), with_key(keys["page"])
    began, answer, let_through = time.monotonic(), http.get("/v1/catalogue", headers=slow), 0
    while answer.status_code == 200:
        let_through += 1
        answer = http.get("/v1/catalogue", headers=slow)
        # five at once, and one a second
        assert let_through <= 5 + time.monotonic() - began
    refuses(answer, 429, "rate")
    assert "'slow' has 60 requests a minute" in answer.json()["error"]["message"]
    assert answer.headers["retry-after"] == "1"
    assert http.get("/v1/catalogue", headers=page).status_code == 200
    time.sleep(1.05)
    assert http.get("/v1/catalogue", headers=slow).status_code == 200


def test_every_key_is_compared_in_constant_time_whichever_it_is(
    http: httpx.Client, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def noticed(one: str, other: str) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(auth.hmac, "compare_digest", noticed)
    # one that is known is looked up by the route as well
    for key, times in ((keys["page"], 2), (keys["old"], 1), ("wrong", 1)):
        compared.clear()
        http.get("/v1/catalogue", headers=with_key(key))
        assert len(compared) == times * len(keys)  # the first that fits does not end it
        assert {len(each) for pair in compared for each in pair} == {64}  # hashes, not keys


def test_what_is_too_large_or_of_another_kind_is_refused_before_it_is_decoded(
    http: httpx.Client, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from test_serving_bad_input import MEDIA, picture

    decoded: list[Any] = []

    def decodes(*given: Any, **named: Any) -> Any:
        decoded.append(given)
        raise AssertionError("it is decoded")

    monkeypatch.setattr(given_items, "normalise", decodes)
    monkeypatch.setattr(content, "normalise", decodes)
    headers = with_key(keys["ops"])
    for name in ("empty", "no-image", "40,000-pixels", "png-bomb", "no-sound", "flac-bomb",
                 "two-hour-wav", "endless-flac", "wrong-type", "no-samples"):  # fmt: skip
        column, data, kind, status, _ = MEDIA[name]
        for path, form in (("items", {"item_id": "a"}), ("score", {"user_id": "u1"}),
                           ("embed/media", {}), ("similar/media", {}),
                           ("search/media", {})):  # fmt: skip
            field = column
            if path == "search/media":
                field = {"poster": "image", "sound": "audio"}[column]
            file = (name, data, kind)
            answer = http.post(f"/v1/{path}", data=form, files={field: file}, headers=headers)
            assert answer.status_code == status and not decoded, (name, path)
    good = {"poster": ("p.png", picture(8, 8), "image/png")}
    assert http.post("/v1/embed/media", files=good, headers=headers).status_code == 500
    assert decoded  # what is refused above would have been decoded there


@pytest.mark.slow
def test_with_a_certificate_it_speaks_tls_and_nothing_else(tiny_run: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, private = tmp_path / "certificate.pem", tmp_path / "private.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(private),
         "-out", str(certificate)], check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    command = [sys.executable, "-m", "mmrec.cli", "serve", str(tiny_run), "--port", str(port),
               "--database", f"sqlite:///{tmp_path / 'service.sqlite'}",
               "--tls-certificate", str(certificate)]  # fmt: skip
    alone = subprocess.run(command, capture_output=True, text=True)
    assert alone.returncode == 2 and "--tls-key go together" in alone.stderr
    command += ["--tls-key", str(private)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    trusted = ssl.create_default_context(cafile=str(certificate))

    def answers() -> bool:
        try:
            found = httpx.get(f"https://127.0.0.1:{port}/readyz", verify=trusted, timeout=5)
        except httpx.TransportError:
            return False
        return bool(found.json()["status"] == "ok")

    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            until(answers, 120)
            with pytest.raises(httpx.ConnectError):  # a certificate that nobody vouches for
                httpx.get(f"https://127.0.0.1:{port}/readyz")
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/readyz")
        finally:
            process.terminate()
            process.wait(40)
