"""A catalogue of six items with every kind of medium, written by the tests that need one."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import soundfile
import yaml
from PIL import Image

# 4 x 4 red pixels; literal, so that golden hashes do not depend on a version of zlib
RED_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR4nGP8z4AATAxEcQAz0QEHOoQ+uAAAAABJRU5E"
    "rkJggg=="
)

CATALOGUE: dict[str, Any] = {
    "name": "tiny",
    "kind": "music",
    "items": {
        "table": "items.jsonl",
        "id": "id",
        "missing": ["", "N/A"],
        "text": ["title", "plot"],
        "image": ["front", "back"],
        "audio": ["sound"],
        "video": ["clip"],
        "vectors": {"clip": "vector"},
        "attributes": {
            "tags": {"type": "set", "separator": "|"},
            "year": {"type": "number"},
            "zip": {"type": "category"},
        },
    },
    "users": {"table": "users.csv", "id": "user", "attributes": {"zip": {"type": "category"}}},
    "interactions": {
        "table": "log.csv",
        "user": "user",
        "item": "item",
        "time": "when",
        "event": "what",
        "value": "stars",
        "context": ["device"],
    },
}


def photograph(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """A smooth picture (H, W, 3) uint8 that no other seed resembles."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def encode(pixels: np.ndarray, form: str = "JPEG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def wave(seconds: float = 0.2, *, rate: int = 8000, channels: int = 1, form: str = "WAV") -> bytes:
    """A sound file: a rising tone."""
    time = np.arange(int(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * (300 + 400 * time) * time)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.repeat(tone[:, None], channels, axis=1), rate, format=form)
    return buffer.getvalue()


def clip(num_frames: int = 4, *, sound: bool = False) -> bytes:
    """A film of a few grey frames, MPEG-4 in MP4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        audio = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number in range(num_frames):
            pixels = np.full((32, 32, 3), 40 * number, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if audio is not None:
            samples = np.zeros((1, 1024), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.rate = 8000
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return buffer.getvalue()


def write_catalogue(folder: Path, **changes: Any) -> Path:
    """Write the catalogue file; keyword arguments replace sections."""
    path = folder / "catalogue.yaml"
    path.write_text(yaml.safe_dump({**CATALOGUE, **changes}, sort_keys=False))
    return path


def write_source(source: Path, items: list[dict[str, Any]] | None = None) -> Path:
    """Write tables and media; returns the source folder."""
    (source / "media").mkdir(parents=True, exist_ok=True)
    files = {
        "a.jpg": encode(photograph(300, 400, seed=1)),
        "b.png": RED_PNG,
        "c.jpg": encode(photograph(64, 48, seed=2)),
        "a.wav": wave(),
        "d.mp4": clip(),
    }
    for name, data in files.items():
        (source / "media" / name).write_bytes(data)
    pl.DataFrame(items or item_rows(), infer_schema_length=None).write_ndjson(
        source / "items.jsonl"
    )
    (source / "users.csv").write_text("user,zip\nu2,02136-1522\nu1,\n")
    log = "user,item,when,what,stars,device\n" + "".join(
        f"u{user},{item},{100 + 10 * step},{'play' if step % 2 else 'like'},{step or ''},phone\n"
        for user in (1, 2, 3)
        for step, item in enumerate(["i/1.x", "2", "3", "4", "5"][: 2 + user])
    )
    (source / "log.csv").write_text(log)
    return source


def item_rows() -> list[dict[str, Any]]:
    """Rows of the table of items."""
    empty = {"title": "", "plot": "N/A", "front": "", "back": "", "sound": "", "clip": ""}
    empty |= {"vector": None, "tags": "", "year": None, "zip": ""}
    rows = [
        {"id": "i/1.x", "title": "Ünder", "plot": "A plot.", "front": "media/a.jpg"},
        {"id": "2", "plot": "Only a plot", "back": "media/b.png", "tags": "x| y", "year": 1995},
        {"id": "3", "title": "Sound", "sound": "media/a.wav", "zip": "02136"},
        {"id": "4", "title": "Film", "clip": "media/d.mp4", "vector": [1.0, 0.5]},
        {"id": "5", "title": "Both", "front": "media/c.jpg", "back": "media/b.png"},
        {"id": "6", "title": "Nobody met it"},
    ]
    return [{**empty, **row} for row in rows]
