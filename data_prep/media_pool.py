"""Loads and normalises media files, several at a time, in the order asked for.

    MediumJob (path, kind) -> pool of processes -> LoadedMedium (bytes for the shard, or a reason)

Order and content of the results do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from loky import ProcessPoolExecutor

from data_prep.duplicates import image_signature
from data_prep.errors import BrokenMedium, DataError
from data_prep.media import Medium, MediumKind, normalise_with_preview

_CHUNK = 8
"""Media a task: large enough that passing them around costs little beside decoding."""
_AHEAD = 4
"""Tasks a process may be ahead of the writer; bounds the memory."""


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
        data = job.path.read_bytes()
    except FileNotFoundError:
        return LoadedMedium(None, "missing file", b"", b"")
    except OSError as error:
        return LoadedMedium(None, f"unreadable file: {error.strerror}", b"", b"")
    digest = hashlib.sha256(data).digest()
    try:
        medium, pixels = normalise_with_preview(data, kind=job.kind, image_side=image_side)
    except BrokenMedium as error:
        return LoadedMedium(None, str(error), digest, b"")
    signature = b"" if pixels is None else image_signature(pixels)
    return LoadedMedium(medium, "", digest, signature)


def load_media(
    jobs: Iterable[MediumJob], *, image_side: int, num_workers: int
) -> Iterator[LoadedMedium]:
    """Load media in order with a pool of processes; at most one worker means this process.

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
    with ProcessPoolExecutor(num_workers, initializer=_start, initargs=(os.getpid(),)) as pool:
        waiting: deque[Future[list[LoadedMedium]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_load_chunk, chunk, image_side))
                if len(waiting) > num_workers * _AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
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


def _load_chunk(jobs: list[MediumJob], image_side: int) -> list[LoadedMedium]:
    return [load_medium(job, image_side) for job in jobs]


def _chunked(jobs: Iterable[MediumJob]) -> Iterator[list[MediumJob]]:
    iterator = iter(jobs)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk
