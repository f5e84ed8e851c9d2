"""Small changes of raw media, as uploads meet them: typos, a second JPEG encoding, noise.

    a medium as a shard holds it ─ changed ─ back through the door ─► transform, encoder

Each is a function of the medium and a generator that (seed, draw, item id) start, so that it comes
out the same whatever else is changed, and in any order.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import soundfile
from numpy.typing import NDArray

from data_prep.media import decode_image, normalise
from data_prep.sound import Sound, decode_audio
from mmrec.data.items import Media

Samples = tuple[NDArray[np.float32], int]

_WORD = re.compile(r"[^\W\d_]{2,}")  # letters of any script


@dataclass(frozen=True)
class Perturbation:
    """One way to change the media of one modality.

    Attributes:
        modality: whose media.
        words: what is done, for people.
        change: (decoded medium, generator) -> the changed medium, decoded.
    """

    modality: str
    words: str
    change: Callable[[Any, np.random.Generator], Any]


def make_typos(
    texts: Mapping[str, str], random: np.random.Generator, *, share: float = 0.1
) -> dict[str, str]:
    """Misspells a share of an item's words by one letter each: dropped, swapped or replaced.

    Args:
        texts: by field name.
        random: chooses words, places and letters.
        share: of the words of all fields together; one word at least. Words are runs of two
            letters or more.

    Returns:
        The same fields; unchanged where there is no word.
    """
    fields = dict(texts)
    words = [(n, word.start(), word.end()) for n, t in texts.items() for word in _WORD.finditer(t)]
    count = min(max(1, round(share * len(words))), len(words))
    chosen = random.choice(len(words), count, replace=False) if words else np.zeros(0, np.int64)
    # letters come from the item's own words: a Latin one in a Greek text is no typo
    letters = sorted({letter for n, start, end in words for letter in texts[n][start:end].lower()})
    for place in np.sort(chosen)[::-1]:  # from the end, so that earlier places stay what they are
        name, start, end = words[place]
        text = fields[name]
        fields[name] = text[:start] + _misspell(text[start:end], letters, random) + text[end:]
    return fields


def _misspell(word: str, letters: list[str], random: np.random.Generator) -> str:
    """The word with one letter wrong; it is never the same, capitals apart."""
    kind = random.choice(["drop", "swap", "replace"])
    at = int(random.integers(len(word)))
    low = [letter.lower() for letter in word]  # one by one: a capital may have a longer small form
    if kind == "swap":
        unlike = [i for i in range(len(low) - 1) if low[i] != low[i + 1]]
        if unlike:
            at = int(random.choice(unlike))
            return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    others = [letter for letter in letters if letter != low[at]]
    if kind == "replace" and others:
        return word[:at] + str(random.choice(others)) + word[at + 1 :]
    return word[:at] + word[at + 1 :]


def encode_jpeg_again(
    pixels: NDArray[np.uint8], random: np.random.Generator, *, quality: tuple[int, int] = (40, 60)
) -> NDArray[np.uint8]:
    """Encodes a picture as JPEG once more, at a quality drawn between the two, and decodes it.

    The door keeps the bytes of a JPEG no larger than what shards hold, so decoding is all that
    would happen to such an upload.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        random: draws the quality.
        quality: lowest and highest, of 1 to 100; `prepare` itself writes 90.
    """
    low, high = quality
    drawn = int(random.integers(low, high + 1))
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=drawn, colorsubsampling="420"
    )
    return decode_image(data)


def add_noise(
    sound: Sound | Samples, random: np.random.Generator, *, decibels: float = 20.0
) -> Samples:
    """Adds white noise at a ratio of signal to noise, and takes the sound through the door.

    Args:
        sound: samples (num_samples, channels) in [-1, 1], and their rate in Hz; or what reads them.
        random: draws the noise.
        decibels: 10 log10 of the power of the sound over that of the noise, over all channels;
            silence stays silent.

    Raises:
        BrokenMedium: the door refuses it.
    """
    samples, rate = sound if isinstance(sound, tuple) else (sound.read(), sound.rate_hz)
    noise = random.standard_normal(samples.shape, dtype=np.float32)
    power, of_noise = (float(np.square(each, dtype=np.float64).mean()) for each in (samples, noise))
    if power == 0:
        return samples, rate
    noise *= np.sqrt(power / 10 ** (decibels / 10) / of_noise)
    file = io.BytesIO()
    soundfile.write(file, samples + noise, rate, format="WAV", subtype="FLOAT")
    return decode_audio(normalise(file.getvalue(), kind="audio").data)


PERTURBATIONS = {
    "typos": Perturbation("text", "one letter wrong in a tenth of the words", make_typos),
    "jpeg": Perturbation("image", "JPEG again, at a quality of 40 to 60", encode_jpeg_again),
    "noise": Perturbation("audio", "white noise 20 dB below the sound", add_noise),
}


class PerturbedMedia:
    """Media of which one modality is changed, each item's in its own way.

    Args:
        media: as they are.
        perturbation: what is done to them.
        seed: with the item's id, starts the generator; numbers from 0.
    """

    state = None

    def __init__(self, media: Media, perturbation: Perturbation, *seed: int) -> None:
        self._media, self._perturbation, self._seed = media, perturbation, seed

    def __len__(self) -> int:
        return len(self._media)

    def item_id(self, item_index: int) -> str:
        """External id."""
        return self._media.item_id(item_index)

    def digest(self, item_index: int, modality: str) -> str | None:
        """None: what is changed is not cached."""
        return None

    def load(self, item_index: int, modality: str) -> Any | None:
        """The changed medium; None where the item has none.

        Raises:
            BrokenMedium: it is there and cannot be used.
            ShardError: the shard does not hold what its index says.
        """
        medium = self._media.load(item_index, modality)
        if medium is None or modality != self._perturbation.modality:
            return medium
        return self._perturbation.change(medium, self._random(item_index))

    def load_all(self, item_index: int, modality: str) -> list[Any]:
        """The changed media; empty where the item has none.

        Raises:
            BrokenMedium: there are some and none can be used.
            ShardError: the shard does not hold what its index says.
        """
        media = self._media.load_all(item_index, modality)
        if modality != self._perturbation.modality:
            return media
        random = self._random(item_index)
        return [self._perturbation.change(medium, random) for medium in media]

    def digest_all(self, item_index: int, modality: str) -> str | None:
        """None: what is changed is not cached."""
        return None

    def _random(self, item_index: int) -> np.random.Generator:
        digest = hashlib.sha256(self.item_id(item_index).encode()).digest()
        return np.random.default_rng([*self._seed, int.from_bytes(digest[:8], "big")])
