"""Bad input to a live service: a 4xx with one clear line each, and it goes on as before."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
import soundfile
from live_servers import serving
from PIL import Image

from mmrec.serving.schemas import MediaSearchRequest
from mmrec.serving.settings import Limits, ServiceSettings

pytest_plugins = ["tiny_run", "live_servers"]
LIMITS = Limits(
    max_json_bytes=40_000, max_upload_bytes=400_000, max_pixels=250_000, max_side=5_000,
    max_audio_s=60.0, max_text_bytes=1000, max_media=2,
)  # fmt: skip
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    url = f"sqlite:///{tmp_path_factory.mktemp('service') / 'service.sqlite'}"
    settings = ServiceSettings(path=tiny_run, database=url, limits=LIMITS)
    with serving(settings) as (address, _), httpx.Client(base_url=address, timeout=30) as client:
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
    subtype = {"WAV": "PCM_U8", "FLAC": "PCM_16", "OGG": "VORBIS"}[form]
    soundfile.write(buffer, np.zeros(int(seconds * rate), np.float32), rate, subtype, format=form)
    return buffer.getvalue()


def sound_of_nan() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(8000, np.nan, np.float32), 8000, "FLOAT", format="WAV")
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
    "no-sound": ("sound", b"RIFF....WAVE", "audio/wav", 422, "not of a format that is known"),
    "noise-as-sound": ("sound", bytes(range(256)) * 9, "audio/wav", 422, "not of a format that"),
    "cut-off-sound": ("sound", sound(3, 8000, "OGG")[:2000], "audio/ogg", 422, "ends earlier"),
    "no-samples": ("sound", sound(0, 8000, "WAV"), "audio/wav", 422, "it holds no samples"),
    "no-numbers": ("sound", sound_of_nan(), "audio/wav", 422, "samples that are not numbers"),
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
    case: tuple[str, bytes, str, int, str], path: str, client: httpx.Client
) -> None:
    column, data, kind, status, says = case
    form = {"/v1/items": {"item_id": "bad"}, "/v1/score": {"user_id": "u1"}}.get(path, {})
    if path == "/v1/search/media":  # its files have names of their own
        names = {"poster": "image", "sound": "audio"}
        column, says = names.get(column, column), "image" if says == "poster" else says
    file = ("../../../etc/passwd\x00.png", data, kind or "application/octet-stream")
    refused = refuses(client.post(path, data=form, files={column: file}), status, says)
    if status == 413:  # before any name of a file is read
        return
    assert "'../../../etc/passwd%00.png'" in refused and "Errno" not in refused
    if column != "../../etc":
        assert refused.startswith(f"{column}: ")
    assert refused.count("allowed") == 1


NAMES = {
    "control": (b"a\x01\x1b[31m.png", r"'a\x01\x1b[31m.png'"),
    "line-ends": ("a\u2028b\x85c\u202e.png".encode(), r"'a\u2028b\x85c\u202e.png'"),
    "no-name": (b"", "a file without a name"),
    "long": (b"x" * 2000, "'" + "x" * 79 + "…'"),
    "no-utf-8": (b"\xff\xfe.png", "'ÿþ.png'"),
    "quotes": (b"it's <b>.png", '"it\'s <b>.png"'),
}


@pytest.mark.parametrize(("name", "shown"), NAMES.values(), ids=NAMES)
@pytest.mark.parametrize(("path", "field"), [("embed", "poster"), ("search", "image")])
def test_a_file_is_named_as_it_was_sent_but_printable(
    path: str, field: str, name: bytes, shown: str, client: httpx.Client
) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="'.encode()
    body = head + name + b'"\r\nContent-Type: image/png\r\n\r\nno picture\r\n--x--\r\n'
    answer = client.post(f"/v1/{path}/media", content=body, headers=BOUNDARY)
    refused = refuses(answer, 422, f"{field}: {shown}: broken image: not an image format")
    assert refused.isprintable()


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
    "nan-within": ("/v1/recommend", b'{"wishes": {"at_least": NaN}}', JSON, 422,
                   "wishes.at_least: Input should be a finite number, given 'nan'"),
    "unknown-field": ("/v1/recommend", b'{"user": "u1"}', JSON, 422,
                      "user: no such field, allowed are k, time, wishes, user_id, history"),
    "unknown-within": ("/v1/recommend", b'{"wishes": {"where": [{"field": "a", "is": 1}]}}', JSON,
                       422, "wishes.where.0.is: no such field, allowed are field, minimum"),
    "unknown-event": ("/v1/recommend", b'{"history": ["i1", {"item_id": "i1", "at": 1}]}', JSON,
                      422, "history.1.at: no such field, allowed are item_id, event, time, value"),
    "unknown-odd": ("/v1/recommend", b'{"\\u001b[31m\\u2028": 1}', JSON, 422,
                    r"\x1b[31m : no such field, allowed are k"),
    "nothing-embedded": ("/v1/embed", b"{}", JSON, 422,
                         "body: asks for nothing, give one or more of item_ids, histories, texts"),
    "none-embedded": ("/v1/embed", b'{"item_ids": [], "histories": []}', JSON, 422, "nothing"),
    "list-embedded": ("/v1/embed", b"[[]]", JSON, 422, "body: Input should be a valid dictionary"),
    "empty-history-embedded": ("/v1/embed", b'{"item_ids": ["i1"], "histories": [["i1"], []]}',
                               JSON, 422, "histories.1: List should have at least 1 item"),
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
    case: tuple[str, bytes, dict[str, str], int, str], client: httpx.Client
) -> None:
    path, body, headers, status, says = case
    refuses(client.post(path, content=body, headers=headers), status, says)


def test_a_body_without_a_length_is_counted_while_it_comes(client: httpx.Client) -> None:
    pieces = (b" " * 10_000 for _ in range(10))
    refuses(client.post("/v1/recommend", content=pieces, headers=JSON), 413, "40000")


def test_fields_of_a_form(client: httpx.Client) -> None:
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


ALLOWED = {
    "/v1/recommend": "POST", "/v1/search/media": "POST", "/v1/events": "POST", "/v1/model": "POST",
    "/v1/items": "POST", "/v1/items/a/b": "GET, PUT, DELETE", 
    "/v1/items/a/image": "GET, PUT, DELETE",
    "/v1/catalogue": "GET", "/v1/users/u1/history": "GET", "/healthz": "GET", "/metrics": "GET",
    "/": "GET", "/page/page.js": "GET", "/docs": "GET, HEAD", "/openapi.json": "GET, HEAD",
}  # fmt: skip


@pytest.mark.parametrize("path", ALLOWED)
def test_a_wrong_method_is_told_the_right_ones(path: str, client: httpx.Client) -> None:
    allowed = ALLOWED[path]
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(allowed.split(", ")):
        for more in ({}, {"json": {}}):  # the method is told before what is wrong with a body
            answer = client.request(method, path, **more)  # type: ignore[arg-type]
            line = f"{method} of '{path}' is not possible, allowed is {allowed}"
            assert refuses(answer, 405, line) == line
            assert answer.json()["error"]["code"] == "wrong_method"
            assert answer.headers["allow"] == allowed
    head = client.head(path)
    assert (head.status_code == 405) == ("HEAD" not in allowed) and not head.content


ODD_ENDS = {"nul": "\0", "escape": "\x1b", "delete": "\x7f", "next-line": "\x85", "c1": "\x9f",
            "line": "\u2028", "paragraph": "\u2029", "new-line": "\n"}  # fmt: skip


@pytest.mark.parametrize("odd", ODD_ENDS.values(), ids=ODD_ENDS)
def test_an_id_holds_no_control_character(odd: str, client: httpx.Client) -> None:
    item_id, says = f"a{odd}b", "has a character that is not allowed"
    poster = {"poster": ("x", picture(8, 8), "image/png")}
    event = {"user_id": "u1", "item_id": "i1"}
    for field in ("user_id", "item_id", "event", "event_id", "request_id"):
        answer = client.post("/v1/events", json={"events": [{**event, field: item_id}]})
        refuses(answer, 422, f"events.0.{field}: {says}")
    for path, asked in (
        ("recommend", {"user_id": item_id}), ("recommend", {"history": [item_id]}),
        ("similar", {"item_id": item_id}), ("embed", {"item_ids": [item_id]}),
        ("search", {"text": "sea", "user_id": item_id}),
    ):  # fmt: skip
        refuses(client.post(f"/v1/{path}", json=asked), 422, says)
    refuses(client.post("/v1/items", data={"item_id": item_id}, files=poster), 422, says)
    refuses(client.post("/v1/score", data={"user_id": item_id}, files=poster), 422, says)
    form = {"text": (None, "sea"), "history": (None, json.dumps([item_id]))}
    refuses(client.post("/v1/search/media", files=form), 422, f"history.0: {says}")
    # a path has one line, so that with a line's end there is nothing
    status, there = (404, "there is nothing at") if odd == "\n" else (422, says)
    for path in (f"/v1/items/{quote(item_id)}", f"/v1/users/{quote(item_id)}/history"):
        refuses(client.get(path), status, there)
    refuses(client.delete(f"/v1/items/{quote(item_id)}"), status, there)
    refuses(client.get("/v1/pictures", params={"item_id": item_id}), 422, says)


def test_an_id_with_quotes_is_an_id_like_any_other(client: httpx.Client) -> None:
    odd = "'; DROP TABLE events; --\"<b>&"
    answer = client.post("/v1/events", json={"events": [{"user_id": odd, "item_id": odd}]})
    assert answer.json() == {"accepted": 1, "known": 0}
    refuses(client.get(f"/v1/items/{quote(odd)}"), 404, "DROP TABLE")
    refuses(client.post("/v1/similar", json={"item_id": odd}), 404, "DROP TABLE")
    assert client.post("/v1/recommend", json={"user_id": odd}).status_code == 200


def test_unknown_fields_of_a_form_are_told_what_there_is(client: httpx.Client) -> None:
    poster = ("p.png", picture(8, 8), "image/png")
    line = refuses(client.post("/v1/search/media", data={"colour": "red"},
                               files={"image": poster}), 422, "colour: no such field")  # fmt: skip
    for name in (*MediaSearchRequest.model_fields, "image", "audio"):
        assert re.search(rf"\b{name}\b", line.partition("allowed are")[2]), name
    wishes = {"wishes": '{"where": [{"field": "year", "is": 1}]}'}
    refuses(client.post("/v1/search/media", data=wishes, files={"image": poster}), 422,
            "wishes.where.0.is: no such field, allowed are field, minimum, maximum")  # fmt: skip
    for path in ("items", "score", "similar/media", "embed/media"):
        form = {"item_id": "a"} if path == "items" else {"user_id": "u1"} if path == "score" else {}
        answer = client.post(
            f"/v1/{path}", data={**form, "colour": "red"}, files={"poster": poster}
        )
        refuses(answer, 422, "'colour' is no field of an item, allowed are title, plot")


def test_other_routes(client: httpx.Client) -> None:
    by_picture = client.post("/v1/similar", json={"item_id": "no such item"})
    assert "/" not in refuses(by_picture, 404, "no such item")
    by_path = client.delete("/v1/items/a%00b")
    refuses(by_path, 422, "item_id")
    assert by_path.json()["error"]["field"] == "item_id"
    for path in ("/etc/passwd", "/v1/../../etc/passwd", "/v1/nothing", "/page/%2E%2E/app.py"):
        refuses(client.get(path), 404, "")
    refuses(client.post("/v1/nothing"), 404, "there is nothing at '/v1/nothing'; /docs has")


def refuses(answer: Any, status: int, says: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "field"}
    message: str = error["message"]
    assert message.isprintable() and 0 < len(message) <= 500
    assert says in message
    return message


def test_the_service_is_unharmed(client: httpx.Client) -> None:
    """Runs last in this module: whatever was sent, lists are what they were."""
    answer = client.post("/v1/recommend", json={"user_id": "u1"}).json()
    assert len(answer["items"]) > 0 and answer["degraded"] == []
    assert client.get("/readyz").json() | {"model": None} == {
        "status": "ok", "model": None, "version": "run", "num_items": 14, "num_added": 0,
        "reasons": [],
    }  # fmt: skip
