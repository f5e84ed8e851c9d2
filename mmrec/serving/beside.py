"""Work on whole models beside the answers: one thread that loads and looks, and gives memory back.

The C library keeps memory for every thread that has asked for some, and gives little of it back. A
model is therefore loaded in one thread always: each other one that did so once would hold megabytes
for good.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Beside:
    """The one thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="beside")

    def wait_for(self, work: Callable[[], T]) -> T:
        """Does something there, while this thread waits."""
        return self._thread.submit(work).result()

    async def do(self, work: Callable[[], T]) -> T:
        """Does something there, while the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Ends the thread once it has done what it does."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def give_memory_back() -> None:
    """Gives to the system what nothing holds any more, what refers to itself in a circle too."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if trim is not None:
            trim(0)
