"""Serves the page and its files, and nothing else: names are looked up, never joined to a path."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

from mmrec.serving.faults import Fault

TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "cards.js": "text/javascript; charset=utf-8",
    "files.js": "text/javascript; charset=utf-8",
    "newitem.js": "text/javascript; charset=utf-8",
    "search.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
page = APIRouter(include_in_schema=False)


@page.get("/")
async def index(request: Request) -> Response:
    """The page itself; it asks for a key only where the service does."""
    return _file("index.html", request)


@page.get("/page/{name}")
async def file(name: str, request: Request) -> Response:
    """A file that the page loads."""
    return _file(name, request)


def _file(name: str, request: Request) -> Response:
    if name not in TYPES:
        raise Fault(404, "not_found", f"the page has no file {name[:60]!r}")
    content = (Path(__file__).parent / name).read_bytes()
    return unless_known(request, content, {**HEADERS, "Content-Type": TYPES[name]})


def unless_known(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """Bytes with their hash as ETag, or 304 where whoever asks has them already."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**headers, "ETag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)
