"""Loads and normalises media files, several at a time, in the order asked for.

    MediumJob (path, kind) -> pool of processes -> LoadedMedium (bytes for the shard, or a reason)

Order and content of the results do not depend on the number of processes. Large media come back
through files, one at a time: a pool of full tracks would be gigabytes ahead of the writer.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from loky import ProcessPoolExecutor

from data_prep.duplicates import image_signature
from data_prep.errors import BrokenMedium, DataError
from data_prep.media import Medium, MediumKind, normalise_with_preview
from data_prep.medium_file import Source

_CHUNK = 8
"""Media a task: large enough that passing them around costs little beside decoding."""
_AHEAD = 4
"""Tasks a process may be ahead of the writer; bounds the memory."""
_LARGE_BYTES = 1024 * 1024
"""Media from here on wait in a file until the writer asks for them."""


@dataclass(frozen=True)
class MediumJob:
    """One file to load."""

    path: Path
    kind: MediumKind


@dataclass(frozen=True)
class LoadedMedium:
    """What became of a job: a medium, or the reason why there is none.

    `source_sha256` is of the file as it lay there, empty where there was no file; `signature` says
    what an image looks like.
    """

    medium: Medium | None
    reason: str
    source_sha256: bytes
    signature: bytes


def load_medium(job: MediumJob, image_side: int) -> LoadedMedium:
    """Read one file and pass it through the one door; faults become a reason."""
    try:
        source, digest = _read(job)
        try:
            medium, pixels = normalise_with_preview(source, kind=job.kind, image_side=image_side)
        except BrokenMedium as error:
            return LoadedMedium(None, str(error), digest, b"")
    except FileNotFoundError:
        return LoadedMedium(None, "missing file", b"", b"")
    except OSError as error:
        return LoadedMedium(None, f"unreadable file: {error.strerror}", b"", b"")
    signature = b"" if pixels is None else image_signature(pixels)
    return LoadedMedium(medium, "", digest, signature)


def _read(job: MediumJob) -> tuple[Source, bytes]:
    """What is decoded, and its sha256: the bytes of a picture; of all else, the file itself."""
    if job.kind == "image":
        data = job.path.read_bytes()
        return data, hashlib.sha256(data).digest()
    with job.path.open("rb") as file:
        return job.path, hashlib.file_digest(file, "sha256").digest()


def load_media(
    jobs: Iterable[MediumJob], *, image_side: int, num_workers: int, aside: Path | None = None
) -> Iterator[LoadedMedium]:
    """Load media in order with a pool of processes; at most one worker means this process.

    Args:
        jobs: files to load.
        image_side: pixels; see `media.normalise`.
        num_workers: processes.
        aside: folder in which large media wait for the writer; by default the system's own for
            such files.

    Processes are started afresh, not forked: polars and Arrow hold threads, whose locks a fork
    copies. They are loky's, which do not run the caller's main module again as `spawn` does: that
    cost each of them 0.6 s of imports, and a script without a main guard could not prepare at all.

    Raises:
        DataError: a worker died (most likely for want of memory).
    """
    if num_workers <= 1:
        yield from (load_medium(job, image_side) for job in jobs)
        return
    chunks = _chunked(jobs)
    with (
        tempfile.TemporaryDirectory(prefix=".media-", dir=aside) as folder,
        ProcessPoolExecutor(num_workers, initializer=_start, initargs=(os.getpid(),)) as pool,
    ):
        waiting: deque[Future[list[_Waiting]]] = deque()
        try:
            for number, chunk in enumerate(chunks):
                waiting.append(pool.submit(_load_chunk, chunk, image_side, f"{folder}/{number}"))
                if len(waiting) > num_workers * _AHEAD:
                    yield from map(_taken_back, waiting.popleft().result())
            while waiting:
                yield from map(_taken_back, waiting.popleft().result())
        except BrokenProcessPool as error:
            raise DataError(
                "a process that decodes media died, most likely for want of memory; "
                "use fewer workers"
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def default_num_workers() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _start(parent: int) -> None:
    """Makes a process keep what it frees, and end soon after its parent, however that ended."""
    # glibc hands back what is free above twice the largest block that was ever freed. Small ones
    # alone meant that each picture's pages were faulted in anew: 400,000 faults in a thousand
    # pictures, a twelfth of the time; 22,000 with one large block freed first
    largest = bytearray(16 << 20)
    del largest

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass(frozen=True)
class _Waiting:
    """A loaded medium on its way to the writer; the bytes of a large one are in a file."""

    loaded: LoadedMedium
    file: Path | None = None


def _load_chunk(jobs: list[MediumJob], image_side: int, prefix: str) -> list[_Waiting]:
    return [
        _put_aside(load_medium(job, image_side), Path(f"{prefix}-{number}"))
        for number, job in enumerate(jobs)
    ]


def _put_aside(loaded: LoadedMedium, file: Path) -> _Waiting:
    if loaded.medium is None or len(loaded.medium.data) < _LARGE_BYTES:
        return _Waiting(loaded)
    file.write_bytes(loaded.medium.data)
    return _Waiting(replace(loaded, medium=replace(loaded.medium, data=b"")), file)


def _taken_back(waiting: _Waiting) -> LoadedMedium:
    loaded, file = waiting.loaded, waiting.file
    if file is None:
        return loaded
    assert loaded.medium is not None
    data = file.read_bytes()
    file.unlink()
    return replace(loaded, medium=replace(loaded.medium, data=data))


def _chunked(jobs: Iterable[MediumJob]) -> Iterator[list[MediumJob]]:
    iterator = iter(jobs)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk
