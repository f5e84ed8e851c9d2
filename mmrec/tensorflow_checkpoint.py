"""Reads the variables of a TensorFlow checkpoint (tensor bundle) without TensorFlow.

    .index   a sorted table (LevelDB's format) of name -> entry: type, shape, place in the data
    .data    the tensors, one after the other, little-endian

Of the format: one data file, uncompressed blocks, whole tensors. Anything else is refused.
Sources: tensorflow/core/protobuf/tensor_bundle.proto; LevelDB's doc/table_format.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
DTYPES: dict[int, str] = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # of types.proto
# fields of BundleEntryProto and TensorShapeProto
DTYPE, SHAPE, SHARD, OFFSET, SIZE, SLICES = 1, 2, 3, 4, 5, 7
DIMENSION, DIMENSION_SIZE = 2, 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def read_checkpoint(index: bytes, data: bytes) -> dict[str, NDArray[Any]]:
    """The variables of a checkpoint by name.

    Args:
        index: bytes of PREFIX.index.
        data: bytes of PREFIX.data-00000-of-00001.

    Raises:
        ValueError: another format, or places that are not in the data.
    """
    if len(index) < FOOTER_BYTES or struct.unpack("<Q", index[-8:])[0] != MAGIC:
        raise ValueError("no tensor bundle: the index does not end as one")
    footer = index[-FOOTER_BYTES:]
    _, at = _handle(footer, 0)
    (place, size), _ = _handle(footer, at)
    found: dict[str, NDArray[Any]] = {}
    for _, handle in _entries(index, place, size):
        (place, size), _ = _handle(handle, 0)
        for key, value in _entries(index, place, size):
            if key:  # the first, nameless one describes the bundle
                found[key.decode()] = _tensor(key.decode(), value, data)
    return found


def _tensor(name: str, entry: bytes, data: bytes) -> NDArray[Any]:
    fields = dict(_fields(entry))
    if fields.get(DTYPE) not in DTYPES or fields.get(SHARD, 0) or SLICES in fields:
        raise ValueError(f"{name}: a type, a data file or slices that are not read here")
    shape = [
        dict(_fields(value)).get(DIMENSION_SIZE, 0)
        for number, value in _fields(fields.get(SHAPE, b""))
        if number == DIMENSION
    ]
    start, size = fields.get(OFFSET, 0), fields.get(SIZE, 0)
    dtype = np.dtype(DTYPES[fields[DTYPE]])
    if start + size > len(data) or size != dtype.itemsize * int(np.prod(shape)):
        raise ValueError(f"{name}: {size} bytes at {start} are no tensor of shape {shape}")
    return np.frombuffer(data, dtype, size // dtype.itemsize, start).reshape(shape)


def _entries(table: bytes, place: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key shares its beginning with the one before it."""
    if place + size + 1 > len(table) or table[place + size] != 0:
        raise ValueError("no tensor bundle: a block of its index is compressed or cut off")
    block = table[place : place + size]
    num_restarts = struct.unpack("<I", block[-4:])[0]
    end, at, key = size - 4 * (num_restarts + 1), 0, b""
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Place and size of a block, and where the handle ends."""
    place, at = _varint(data, at)
    size, at = _varint(data, at)
    return (place, size), at


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        value: Any
        if kind == VARINT:
            value, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
            value, at = int.from_bytes(message[at : at + length], "little"), at + length
        else:
            raise ValueError(f"no tensor bundle: a field of kind {kind}")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data):
            raise ValueError("no tensor bundle: it is cut off")
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at
