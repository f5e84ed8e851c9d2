"""Groups near-duplicate items, so that the draw of cold items keeps them together.

Two items are near-duplicates when they share the bytes of a medium, all their text (case, blanks
and compatibility forms apart), or a picture that looks the same: equal 64-bit difference hash and
mean colours of a 4 x 4 grid that differ by at most `COLOUR_TOLERANCE` (the hash alone takes a red
square for a blue one). What more than `MAX_SHARED` items share is a placeholder, not a duplicate:
it groups nothing. Near-duplicates are found through any chain of such pairs.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SHARED = 20
"""Items; a poster "not available" is shared by hundreds."""
COLOUR_TOLERANCE = 12
"""Of 255, in the cell that differs most; a JPEG written twice stays below 6."""
_NOISE = 2
"""Grey levels; smaller steps between cells are compression noise and count as flat."""
_HASH_BYTES = 8


def image_signature(pixels: NDArray[np.uint8]) -> bytes:
    """What an image looks like: 8 bytes of difference hash, then 48 of mean colours.

    The hash compares neighbours in a 9 x 8 grey thumbnail (Krawetz' dHash).

    Args:
        pixels: (H, W, 3) uint8.
    """
    image = Image.fromarray(pixels)
    # boxes first: a thumbnail straight from 1,200 pixels costs ten times as much
    small = image.resize((72, 64), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1] + _NOISE)
    colours = np.asarray(small.resize((4, 4), Image.Resampling.BOX))
    return bits.tobytes() + colours.tobytes()


def text_digest(texts: Mapping[str, str]) -> bytes:
    """16 bytes that are equal where all texts of two items read the same."""
    joined = "\n".join(texts.values())
    plain = " ".join(unicodedata.normalize("NFKC", joined).casefold().split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


class DuplicateFinder:
    """Collects what items share and joins those that share something rare."""

    def __init__(self) -> None:
        self._sharing: dict[bytes, list[int]] = defaultdict(list)
        self._looks: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)

    def add(self, item_index: int, digests: Iterable[bytes], signatures: Iterable[bytes]) -> None:
        """Register an item with digests of its media and text and signatures of its images."""
        for digest in set(digests):
            self._sharing[digest].append(item_index)
        for signature in set(signatures):
            self._looks[signature[:_HASH_BYTES]].append((item_index, signature))

    def groups(self, num_items: int) -> NDArray[np.int64]:
        """(num_items,) int64: the smallest item_index of the item's group, its own if alone."""
        parent = list(range(num_items))

        def root(item: int) -> int:
            while parent[item] != item:
                parent[item] = parent[parent[item]]
                item = parent[item]
            return item

        for sharers in (*self._sharing.values(), *self._alike()):
            if 1 < len(sharers) <= MAX_SHARED:
                first = min(map(root, sharers))
                for item in sharers:
                    parent[root(item)] = first
        return np.array([root(item) for item in range(num_items)], dtype=np.int64)

    def num_exact_duplicates(self) -> int:
        """Items that share a medium's bytes or all their text with an earlier one."""
        return len({item for sharers in self._sharing.values() for item in sharers[1:]})

    def _alike(self) -> Iterable[list[int]]:
        for entries in self._looks.values():
            clusters: list[tuple[NDArray[np.int16], list[int]]] = []
            for item, signature in entries:
                colours = np.frombuffer(signature[_HASH_BYTES:], dtype=np.uint8).astype(np.int16)
                for centre, members in clusters:
                    if int(np.abs(centre - colours).max()) <= COLOUR_TOLERANCE:
                        members.append(item)
                        break
                else:
                    clusters.append((colours, [item]))
            yield from (members for _, members in clusters)
