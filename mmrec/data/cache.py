"""The state cache on disk: what encoders give at the cut, a row an item, memory-mapped.

    ROOT/MODALITY-FINGERPRINT/
        values.bin (N, T, W) of its dtype    mask.bin (N, T) bool    pooled.bin (N, P) fp32
        keys.bin (N, 32) sha256              status.bin (N,)         manifest.json

Every row carries a key: the sha256 of its medium, its transform, its weights, the cut and the
dtype. A row whose key is still right is kept, so ten new items cost ten items and a replaced
poster is computed again. Keys reach the disk after the values they stand for: a fill killed at any
moment leaves rows that are right and rows that are computed again. `mmrec.data.fill` fills it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from encoders.cut import StackedEncoder
from encoders.encoder import Encoder, Transform
from encoders.tokens import Tokens
from mmrec.errors import UserError

SCHEMA = 1
MANIFEST_FILE = "manifest.json"

StateDtype = Literal["float32", "float16", "bfloat16"]

_KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# bf16 is no numpy dtype: its bits are kept as int16
_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.int16}

Layout = dict[str, tuple[DTypeLike, tuple[int, ...]]]


class Status(IntEnum):
    """What a row of the cache holds."""

    EMPTY = 0
    PRESENT = 1
    MISSING = 2
    BROKEN = 3


@dataclass(frozen=True)
class CacheSpec:
    """What the states of a cache are; another value of any field is another cache.

    Attributes:
        transform: fingerprint of the transform.
        weights: fingerprint of the encoder.
        num_tokens: T.
        state_width: W, width of a state at the cut.
        pooled_width: P, width of the encoder's own pooled vector; 0: none is kept.
        dtype: of the states on disk.
        cut: blocks above it; "0" is a whole encoder frozen.
    """

    modality: str
    transform: str
    weights: str
    num_tokens: int
    state_width: int
    pooled_width: int
    dtype: StateDtype
    cut: str = "0"
    schema: int = SCHEMA

    @classmethod
    def of(
        cls, encoder: Encoder, transform: Transform, *, modality: str, dtype: StateDtype
    ) -> CacheSpec:
        """The spec of an encoder's states at its cut.

        Above 0 it depends on the weights below alone, so that it outlasts training, and no pooled
        vector is kept: what lies above changes.
        """
        if isinstance(encoder, StackedEncoder) and encoder.trained_blocks:
            return cls(
                modality=modality,
                transform=transform.fingerprint(),
                weights=encoder.fingerprint_below(),
                num_tokens=encoder.state_tokens,
                state_width=encoder.state_width,
                pooled_width=0,
                dtype=dtype,
                cut=str(encoder.trained_blocks),
            )
        return cls(
            modality=modality,
            transform=transform.fingerprint(),
            weights=encoder.fingerprint(),
            num_tokens=encoder.num_tokens,
            state_width=encoder.state_width,
            pooled_width=encoder.width,
            dtype=dtype,
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def layout(self) -> Layout:
        """Numpy dtype and shape of a row of each file; the status is last, see `_allocate`."""
        T, W, P = self.num_tokens, self.state_width, self.pooled_width
        return {
            "values": (_STORED[self.dtype], (T, W)),
            "mask": (np.bool_, (T,)),
            **({"pooled": (np.float32, (P,))} if P else {}),
            "keys": (np.uint8, (32,)),
            "status": (np.uint8, ()),
        }

    @property
    def row_bytes(self) -> int:
        """What an item takes on disk."""
        return sum(_size_bytes(*each) for each in self.layout.values())


def _size_bytes(dtype: DTypeLike, shape: tuple[int, ...]) -> int:
    return np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))


def row_key(fingerprint: str, digest: str | None) -> bytes:
    """The 32 bytes that name what a row holds.

    Args:
        fingerprint: of the spec.
        digest: sha256 of the medium; None where the item has none.
    """
    return hashlib.sha256(f"{fingerprint} {digest}".encode()).digest()


def round_states(states: Tokens, dtype: StateDtype) -> Tokens:
    """States as they leave a cache: rounded to its dtype, returned in fp32.

    States computed live pass through here too, so that training, export and service agree. They do
    so to 1e-5 with float32, which rounds nothing. A state that lies between two steps of a coarser
    dtype may be rounded the other way in a batch of other items, whose last bits differ.

    What exceeds the dtype's range becomes its largest finite value: a new item may be larger than
    every item the dtype was chosen for.
    """
    kind = _KINDS[dtype]
    largest = torch.finfo(kind).max
    return Tokens(states.values.float().clamp(-largest, largest).to(kind).float(), states.mask)


class StateCache:
    """The states of one modality at one cut, by item_index.

    Make one with `open_or_create`. Reading maps files and copies the rows asked for, so memory
    does not grow with N; a pickled cache (for a worker) maps the files again.
    """

    def __init__(self, folder: Path, spec: CacheSpec, num_items: int) -> None:
        self.folder = folder
        self.spec = spec
        self.num_items = num_items
        self._layout = spec.layout
        self._maps: dict[str, NDArray[Any]] = {}

    @classmethod
    def open_or_create(cls, root: Path, spec: CacheSpec, num_items: int) -> StateCache:
        """The cache of a spec below `root`, grown to `num_items` rows; new rows are empty.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        cache = cls(root / f"{spec.modality}-{spec.fingerprint[:16]}", spec, num_items)
        try:
            cache.folder.mkdir(parents=True, exist_ok=True)
            cache._allocate()
            cache._write_manifest()
        except OSError as error:
            raise UserError(
                f"state cache {cache.folder}: cannot be written: {error.strerror or error}; "
                "free space there or choose another folder"
            ) from None
        return cache

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memmap would be a copy of the whole file.
        return {**self.__dict__, "_maps": {}}

    def read(self, item_index: NDArray[np.int64]) -> Tokens:
        """States of M items, in any order, repeats allowed.

        Args:
            item_index: (M,) int64.

        Returns:
            Tokens (M, T, W) fp32; an item whose medium is missing or broken has no real token.

        Raises:
            ValueError: a row was never filled.
        """
        absent = self._absent(item_index)
        bits = torch.from_numpy(np.asarray(self._map("values")[item_index]))
        values = bits.view(torch.bfloat16) if self.spec.dtype == "bfloat16" else bits
        mask = torch.from_numpy(np.asarray(self._map("mask")[item_index]))
        values = values.float()
        values[absent] = 0.0
        mask[absent] = False
        return Tokens(values, mask)

    def pooled(self, item_index: NDArray[np.int64]) -> Tensor:
        """The family's own vector of M items, (M, P) fp32; zeros where `present` is False.

        Raises:
            ValueError: a row was never filled.
        """
        vectors = torch.from_numpy(np.asarray(self._map("pooled")[item_index]))
        vectors[self._absent(item_index)] = 0.0
        return vectors

    @property
    def present(self) -> NDArray[np.bool_]:
        """(N,) bool: True = the item has states."""
        present: NDArray[np.bool_] = np.asarray(self._map("status")) == Status.PRESENT
        return present

    @property
    def complete_for(self) -> str | None:
        """State of the media for which every row is right; None while that is not known."""
        value: str | None = self._read_manifest().get("complete_for")
        return value

    @complete_for.setter
    def complete_for(self, media_state: str | None) -> None:
        self._write_manifest(complete_for=media_state)

    @property
    def too_large(self) -> bool:
        """Whether a state met here exceeded the dtype's range, so that the cache is of no use."""
        return bool(self._read_manifest().get("too_large"))

    @too_large.setter
    def too_large(self, value: bool) -> None:
        self._write_manifest(too_large=value)

    def find_stale(self, keys: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Rows whose key is not the wanted one, and rows whose medium was broken, ascending.

        Args:
            keys: (N, 32) the wanted keys.
        """
        wrong = (self._map("keys") != keys).any(axis=1)
        broken = np.asarray(self._map("status")) == Status.BROKEN
        return np.flatnonzero(wrong | broken)

    def put(self, rows: NDArray[np.int64], states: Tokens, pooled: Tensor | None) -> None:
        """Write values of rows; they count only after `commit`.

        Args:
            rows: (R,) int64.
            states: Tokens (R, T, W), already rounded.
            pooled: (R, P); None where none is kept.
        """
        values = states.values.cpu().to(_KINDS[self.spec.dtype])
        bits = values.view(torch.int16) if self.spec.dtype == "bfloat16" else values
        self._map("values", "r+")[rows] = bits.numpy()
        self._map("mask", "r+")[rows] = states.mask.cpu().numpy()
        if pooled is not None:
            self._map("pooled", "r+")[rows] = pooled.cpu().numpy()

    def commit(
        self, rows: Sequence[int] | NDArray[np.int64], keys: NDArray[np.uint8], status: Status
    ) -> None:
        """Say what rows hold, after their values have reached the disk.

        Args:
            rows: (R,) rows.
            keys: (N, 32) keys of all rows.
            status: of these rows; EMPTY takes back what was said.
        """
        if len(rows) == 0:
            return
        for name in self._layout.keys() - {"keys", "status"}:
            self._flush(name)
        self._map("keys", "r+")[rows] = 0 if status is Status.EMPTY else keys[rows]
        self._map("status", "r+")[rows] = status
        self._flush("keys")
        self._flush("status")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the cache for one process that writes.

        Raises:
            UserError: another process holds it.
        """
        with (self.folder / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"state cache {self.folder}: another process is filling it; wait for it to end"
                ) from None
            yield

    def _absent(self, item_index: NDArray[np.int64]) -> Tensor:
        status = np.asarray(self._map("status")[item_index])
        if (status == Status.EMPTY).any():
            row = int(np.asarray(item_index)[status == Status.EMPTY][0])
            raise ValueError(f"state cache {self.folder}: row {row} is not filled: fill it first")
        return torch.from_numpy(status != Status.PRESENT)

    def _map(self, name: str, mode: Literal["r", "r+"] = "r") -> NDArray[Any]:
        key = f"{name} {mode}"
        if key not in self._maps:
            dtype, shape = self._layout[name]
            path = self.folder / f"{name}.bin"
            self._maps[key] = np.memmap(path, dtype, mode, shape=(self.num_items, *shape))
        return self._maps[key]

    def _flush(self, name: str) -> None:
        written = self._maps.get(f"{name} r+")
        if isinstance(written, np.memmap):
            written.flush()

    def _allocate(self) -> None:
        """Grow every file to N rows of zeros, the status last.

        A file with fewer rows than the status file was cut or replaced from outside: then all is
        emptied. Space is reserved, not left as a hole, since a write through a map to a full disk
        would kill the process instead of raising.
        """
        rows = {name: self._rows_on_disk(name) for name in self._layout}
        if any(count < rows["status"] for count in rows.values()):
            for name in self._layout:
                (self.folder / f"{name}.bin").unlink(missing_ok=True)
        for name in self._layout:
            with (self.folder / f"{name}.bin").open("ab") as file:
                size, wanted = file.tell(), self.num_items * self._row_bytes(name)
                if size < wanted:
                    os.posix_fallocate(file.fileno(), size, wanted - size)

    def _rows_on_disk(self, name: str) -> int:
        path = self.folder / f"{name}.bin"
        return path.stat().st_size // self._row_bytes(name) if path.exists() else 0

    def _row_bytes(self, name: str) -> int:
        return _size_bytes(*self._layout[name])

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def _write_manifest(self, **changes: Any) -> None:
        kept = {name: self._read_manifest().get(name) for name in ("complete_for", "too_large")}
        text = json.dumps({**asdict(self.spec), **kept, **changes}, indent=2)
        aside = self.folder / f".{MANIFEST_FILE}.{os.getpid()}"
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(self.folder / MANIFEST_FILE)
