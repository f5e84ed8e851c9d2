"""A medium's bytes, whether in memory or in a file, opened the same way.

A film may be larger than memory: who reads it is given its place, and takes what it needs.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

Source = bytes | Path
"""The bytes of a medium, or the file that holds them."""


def opened(source: Source) -> BinaryIO:
    """A medium to read from its start; close it.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    # by number: decoders guess by a file's name, which the same bytes in a shard do not have
    return os.fdopen(os.open(source, os.O_RDONLY), "rb")


def size_of(source: Source) -> int:
    """Bytes of a medium.

    Raises:
        OSError: the file cannot be read.
    """
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def whole(source: Source) -> bytes:
    """All bytes of a medium.

    Raises:
        OSError: the file cannot be read.
    """
    return source if isinstance(source, bytes) else source.read_bytes()
