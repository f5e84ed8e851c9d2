"""Bad input to the service: a 4xx with one clear line each, and the service goes on as before."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient
from PIL import Image

from mmrec.serving.app import build_app
from mmrec.serving.service import Service
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["tiny_run"]
LIMITS = Limits(
    max_json_bytes=40_000, max_upload_bytes=400_000, max_pixels=250_000, max_side=5_000,
    max_audio_s=60.0, max_text_bytes=1000, max_media=2,
)  # fmt: skip
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'service.sqlite'}"
    service = Service(ServiceSettings(path=tiny_run, database=url, limits=LIMITS))
    with TestClient(build_app(service), raise_server_exceptions=False) as client:
        yield client


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height), 7).save(buffer, "PNG")
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A hundred bytes whose header promises gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def sound(seconds: float, rate: int, form: str) -> bytes:
    buffer = io.BytesIO()
    subtype = "PCM_U8" if form == "WAV" else "PCM_16"
    soundfile.write(buffer, np.zeros(int(seconds * rate), np.float32), rate, subtype, format=form)
    return buffer.getvalue()


def flac_of_unknown_length() -> bytes:
    data = bytearray(sound(1, 8000, "FLAC"))
    data[21] &= 0xF0  # STREAMINFO: 36 bits of the number of samples
    data[22:26] = bytes(4)
    return bytes(data)


MEDIA: dict[str, tuple[str, bytes, str, int, str]] = {
    "empty": ("poster", b"", "image/png", 422, "empty"),
    "no-image": ("poster", b"GIF89 is what I say", "image/gif", 422, "not an image"),
    "cut-off": ("poster", picture(64, 64)[:70], "image/png", 422, "broken image"),
    "40,000-pixels": ("poster", picture(40_000, 8), "image/png", 422, "at most"),
    "png-bomb": ("poster", png_that_claims(60_000, 60_000), "image/png", 422, "too large image"),
    "one-pixel": ("poster", picture(1, 1), "image/png", 422, "too small"),
    "no-sound": ("sound", b"RIFF....WAVE", "audio/wav", 422, "broken audio"),
    "flac-bomb": ("sound", sound(4000, 8000, "FLAC"), "audio/flac", 422, "too long"),
    "two-hour-wav": ("sound", sound(7200, 50, "WAV"), "audio/wav", 422, "too long"),
    "endless-flac": ("sound", flac_of_unknown_length(), "audio/flac", 422, "how long"),
    "wrong-type": ("poster", picture(8, 8), "text/html", 415, "text/html"),
    "sound-as-picture": ("poster", sound(1, 8000, "WAV"), "", 422, "not an image"),
    "unknown-column": ("../../etc", picture(8, 8), "image/png", 422, "poster"),
    "too-much": ("poster", bytes(500_000), "image/png", 413, "400000"),
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["/v1/items", "/v1/score", "/v1/embed/media", "/v1/similar/media", "/v1/search/media"],
)
@pytest.mark.parametrize("case", MEDIA.values(), ids=MEDIA)
def test_media_that_cannot_be_used(
    case: tuple[str, bytes, str, int, str], path: str, client: TestClient
) -> None:
    column, data, kind, status, says = case
    form = {"/v1/items": {"item_id": "bad"}, "/v1/score": {"user_id": "u1"}}.get(path, {})
    if path == "/v1/search/media":  # its files have names of their own
        names = {"poster": "image", "sound": "audio"}
        column, says = names.get(column, column), "image" if says == "poster" else says
    file = ("../../../etc/passwd\x00.png", data, kind or "application/octet-stream")
    refuses(client.post(path, data=form, files={column: file}), status, says)


BOUNDARY = {"content-type": "multipart/form-data; boundary=x"}
BODIES: dict[str, tuple[str, bytes, dict[str, str], int, str]] = {
    "deep": ("/v1/recommend", b"[" * 10_000 + b"]" * 10_000, JSON, 400,
             "nested"),
    "deep-object": ("/v1/recommend", b'{"a":' * 5_000 + b"1" + b"}" * 5_000, JSON, 400,
                    "nested"),
    "no-json": ("/v1/recommend", b"{", JSON, 400, "JSON"),
    "no-utf-8": ("/v1/recommend", b'{"user_id": "\xff"}', JSON, 400, "body"),
    "nan": ("/v1/recommend", b'{"time": NaN}', JSON, 422, "time"),
    "infinite": ("/v1/events", b'{"events":[{"user_id":"a","item_id":"b","value":1e999}]}',
                 JSON, 422, "value"),
    "unknown-field": ("/v1/recommend", b'{"user": "u1"}', JSON, 422, "user"),
    "huge-number": ("/v1/recommend", b'{"k": ' + b"9" * 5000 + b"}", JSON, 400, "body"),
    "k-0": ("/v1/recommend", b'{"k": 0}', JSON, 422, "k: "),
    "control": ("/v1/recommend", b'{"user_id": "a\\u0000b"}', JSON, 422,
                "user_id: has a character that is not allowed"),
    "surrogate": ("/v1/recommend", b'{"user_id": "\\ud800"}', JSON, 422, "user_id"),
    "long-id": ("/v1/recommend", b'{"user_id": "' + b"x" * 257 + b'"}', JSON, 422, "user_id"),
    "empty-id": ("/v1/similar", b'{"item_id": ""}', JSON, 422, "item_id"),
    "no-items": ("/v1/recommend", b'{"history": ["nobody\'s", "; DROP TABLE items"]}', JSON, 404,
                 "no known item"),
    "both": ("/v1/recommend", b'{"user_id": "u1", "history": []}', JSON, 422, "history"),
    "neither": ("/v1/similar", b"{}", JSON, 422, "item_id"),
    "no-condition": ("/v1/recommend", b'{"wishes": {"where": [{"field": "a"}]}}', JSON, 422,
                     "asks"),
    "no-events": ("/v1/events", b'{"events": []}', JSON, 422, "events"),
    "form-as-json": ("/v1/recommend", b"a=1", {"content-type": "application/x-www-form-urlencoded"},
                     415, "application/json"),
    "no-type": ("/v1/recommend", b"{}", {"content-type": ""}, 415, "application/json"),
    "json-as-form": ("/v1/items", b"{}", JSON, 415, "multipart/form-data"),
    "no-boundary": ("/v1/items", b"{}", {"content-type": "multipart/form-data"}, 400, "form"),
    "broken-form": ("/v1/items", b"nonsense--x\r\n", BOUNDARY, 400, "form"),
    "empty-form": ("/v1/items", b"--x--\r\n", BOUNDARY, 422, "item_id"),
    "too-large": ("/v1/recommend", b" " * 50_000, JSON, 413, "40000"),
    "version-path": ("/v1/model", b'{"version": "../../etc"}', JSON, 422, "version"),
    "no-version": ("/v1/model", b'{"version": "run-2"}', JSON, 422, "--models"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES.values(), ids=BODIES)
def test_bodies_that_cannot_be_used(
    case: tuple[str, bytes, dict[str, str], int, str], client: TestClient
) -> None:
    path, body, headers, status, says = case
    refuses(client.post(path, content=body, headers=headers), status, says)


def test_a_body_without_a_length_is_counted_while_it_comes(client: TestClient) -> None:
    pieces = (b" " * 10_000 for _ in range(10))
    refuses(client.post("/v1/recommend", content=pieces, headers=JSON), 413, "40000")


def test_fields_of_a_form(client: TestClient) -> None:
    poster = {"poster": ("x", picture(8, 8), "image/png")}
    for form, files, status, says in (
        ({"item_id": "a\x01b"}, poster, 422, "item_id"),
        ({}, poster, 422, "item_id"),
        ({"item_id": "a", "colour": "red"}, poster, 422, "title, plot"),
        ({"item_id": "a", "title": "t" * 2000}, poster, 400, "form"),
        ({"item_id": "a"}, {}, 422, "none of the media"),
        ({"item_id": "a", "title": ["x", "y"]}, poster, 422, "twice"),
    ):
        parts = [(name, (None, text)) for name, value in form.items()
                 for text in (value if isinstance(value, list) else [value])]  # fmt: skip
        answer = client.post("/v1/items", files=[*parts, *files.items()])
        refuses(answer, status, says)
    three = [("poster", ("x", picture(8, 8), "image/png"))] * 3
    refuses(client.post("/v1/items", data={"item_id": "a"}, files=three), 400, "form")
    refuses(client.post("/v1/score", data={"title": "x"}, files=poster), 422, "user_id")
    form = {"title": "x", "history": '["i1"'}
    refuses(client.post("/v1/score", data=form, files=poster), 422, "history")
    form = {"title": "x", "history": "[]"}
    refuses(client.post("/v1/score", data=form, files=poster), 422, "history: is empty")
    form = {"title": "x", "user_id": "nobody"}
    refuses(client.post("/v1/score", data=form, files=poster), 404, "nobody")
    refuses(client.post("/v1/similar/media", data={"k": "0"}, files=poster), 422, "k is 0")


def test_other_routes_and_methods(client: TestClient) -> None:
    refuses(client.get("/v1/recommend"), 405, "")
    assert client.get("/v1/recommend").headers["allow"] == "POST"
    by_picture = client.post("/v1/similar", json={"item_id": "no such item"})
    refuses(by_picture, 404, "no such item")
    assert "/" not in by_picture.json()["error"]["message"]
    by_path = client.delete("/v1/items/a%00b")
    refuses(by_path, 422, "item_id")
    assert by_path.json()["error"]["field"] == "item_id"
    refuses(client.get("/etc/passwd"), 404, "")
    refuses(client.get("/v1/../../etc/passwd"), 404, "")


def refuses(answer: Any, status: int, says: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) <= 500
    assert says in error["message"]


def test_the_service_is_unharmed(client: TestClient) -> None:
    """Runs last in this module: whatever was sent, lists are what they were."""
    answer = client.post("/v1/recommend", json={"user_id": "u1"}).json()
    assert len(answer["items"]) > 0 and answer["degraded"] == []
    assert client.get("/readyz").json() | {"model": None} == {
        "status": "ok", "model": None, "version": "run", "num_items": 14, "num_added": 0,
        "reasons": [],
    }  # fmt: skip
