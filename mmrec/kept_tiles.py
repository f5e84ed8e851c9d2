"""Vectors that a long export has computed, kept tile by tile, so that an interrupted one goes on.

    FOLDER/made-of.json                  what they are made from; of anything else they are cleared
    FOLDER/NAME-64-000012.safetensors    rows [12 x 64, 13 x 64) of one series of vectors

A tile is written aside, brought to the disk and renamed, so that it is there whole or not at all.
Tiles lie on a fixed grid: an export that goes on computes the same batches, hence the same bits, as
one that was never interrupted, and no row can come twice or be left out.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mmrec.data.ragged import IntArray
from mmrec.errors import UserError

logger = logging.getLogger(__name__)

MADE_OF_FILE = "made-of.json"
LOCK_FILE = "lock"

Compute = Callable[[Sequence[IntArray]], Iterable[Tensor]]
"""Gives the vectors of each of some tiles, in their order; a tile is the rows it holds."""


class KeptTiles:
    """Series of vectors, of which the tiles that are on disk are not computed again.

    Args:
        folder: theirs alone; made where absent.
        made_of: hashes of all that a vector depends on, by the word for it. Where the folder was
            made from others, what it holds is cleared with a line that names them.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str]) -> None:
        self.folder = folder
        self._counted: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        known = _read_json(folder / MADE_OF_FILE)
        if known != dict(made_of):
            others = [name for name in made_of if known.get(name) != made_of[name]]
            if known and any(folder.glob("*.safetensors")):
                logger.warning(
                    "%s: cleared what an interrupted export had computed from other %s",
                    folder,
                    ", ".join(others),
                )
            self._clear()
            _write(folder / MADE_OF_FILE, json.dumps(dict(made_of), indent=1).encode())

    def series(
        self, name: str, num_rows: int, compute: Compute, *, tile: int, noun: str
    ) -> Iterator[Tensor]:
        """The vectors of all rows, a tile after the other; those on disk are read from there.

        Args:
            name: of the series.
            num_rows: n.
            compute: called once, with the tiles that are not on disk.
            tile: rows of one; a kill loses the one that is being computed.
            noun: what a row is, for the line that says how many were kept.

        Yields:
            What `compute` gave, on the CPU; of no rows one tile without rows.
        """
        tiles = _tiles(num_rows, tile)
        kept = [self._path(name, tile, number).is_file() for number in range(len(tiles))]
        num_kept = sum(len(each) for each, there in zip(tiles, kept, strict=True) if there)
        if num_kept and name not in self._counted:
            logger.info(
                "%s of %s %s kept from an interrupted export",
                f"{num_kept:,}",
                f"{num_rows:,}",
                noun,
            )
        self._counted.add(name)
        missing = [each for each, there in zip(tiles, kept, strict=True) if not there]
        computed = iter(compute(missing)) if missing else iter(())
        for number, there in enumerate(kept):
            path = self._path(name, tile, number)
            if there:
                yield _read_tile(path)
                continue
            vectors = next(computed).detach().cpu().contiguous()
            _write(path, save({"vectors": vectors}))
            yield vectors

    def _path(self, name: str, tile: int, number: int) -> Path:
        return self.folder / f"{name}-{tile}-{number:06d}.safetensors"

    def _clear(self) -> None:
        # what they are made from goes first: a folder without it is never gone on with
        (self.folder / MADE_OF_FILE).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.is_file() and path.name != LOCK_FILE:
                path.unlink()


def in_tiles(
    kept: KeptTiles | None, name: str, num_rows: int, compute: Compute, *, tile: int, noun: str
) -> Iterator[Tensor]:
    """The tiles of a series, as `KeptTiles.series` gives them; without it all are computed."""
    if kept is None:
        return iter(compute(_tiles(num_rows, tile)))
    return kept.series(name, num_rows, compute, tile=tile, noun=noun)


def _tiles(num_rows: int, tile: int) -> list[IntArray]:
    rows = np.arange(num_rows, dtype=np.int64)
    return [rows[start : start + tile] for start in range(0, max(num_rows, 1), tile)]


@contextmanager
def kept_while(folder: Path, made_of: Mapping[str, str]) -> Iterator[KeptTiles]:
    """Tiles that are removed once all went well, and stay where it was interrupted.

    Args:
        folder: as of `KeptTiles`.
        made_of: as of `KeptTiles`.

    Raises:
        UserError: another process is at work on the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another export writes there; wait for it to end") from None
        kept = KeptTiles(folder, made_of)
        try:
            yield kept
        except BaseException:
            if not any(folder.glob("*.safetensors")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / MADE_OF_FILE).unlink()
        shutil.rmtree(folder, ignore_errors=True)


def _read_tile(path: Path) -> Tensor:
    """A tile that was kept.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return load_file(path)["vectors"]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it and export again") from None


def _read_json(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, data: bytes) -> None:
    """Aside, to the disk, then under its name: after a fall of power it is whole, too."""
    aside = path.with_name(f".{path.name}.partial")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
