"""Loads parts of a job in threads, a few of them before they are asked for, in their order.

Decoding and most of what transforms do let go of Python's lock, so that media are loaded while the
model works on those before.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Loaded = TypeVar("Loaded")

TILE = 64
"""Items that are loaded and encoded together where they are not in a cache."""
MAX_THREADS = 4
"""More would hold more loaded tiles: 64 clips of eight frames at 224 pixels are 0.3 GB."""


def loading_threads() -> int:
    """Threads that load while a model works: one a core that it leaves free, at least one."""
    busy = 0 if torch.cuda.is_available() else torch.get_num_threads()
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) - busy))


def load_ahead(
    load: Callable[[Part], Loaded],
    parts: Sequence[Part],
    *,
    num_threads: int | None = None,
    ahead: int | None = None,
) -> Iterator[Loaded]:
    """What `load` gives for each part, in order.

    Args:
        load: called from several threads.
        parts: a single one is loaded in the caller's own thread.
        num_threads: that load; None: `loading_threads`.
        ahead: parts that are loaded, or being loaded, beside the one the caller works on; None: one
            a thread.
    """
    if len(parts) < 2:
        yield from map(load, parts)
        return
    num_threads = num_threads or loading_threads()
    ahead = num_threads if ahead is None else ahead
    waiting: deque[Future[Loaded]] = deque()
    executor = ThreadPoolExecutor(max_workers=num_threads)
    try:
        for part in parts:
            waiting.append(executor.submit(load, part))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
