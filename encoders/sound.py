"""Stretches of a sound as every audio encoder hears them: mono, 16 kHz, as loud as is asked for.

    sound of minutes -> even windows -> mono -> 16 kHz -> (at one loudness) -> (samples,) each

Loudness is that of ITU-R BS.1770-4 in LUFS: pitches weighed as ears do, blocks of 400 ms, silence
and quiet passages left out. It is measured on what is heard, all windows together, so that a long
sound is not read whole for it; that is the mono mix below 8 kHz, not what a meter says of the file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio import functional as sound

SAMPLE_RATE_HZ = 16_000
BLOCK = round(0.4 * SAMPLE_RATE_HZ)  # samples, of which a loudness is measured
SILENCE_LUFS = -70.0  # BS.1770's own gate: what lies below is no sound
QUIETEST_LUFS, LOUDEST_LUFS = -60.0, -5.0  # that may be asked for
HIGHEST_PEAK = 10 ** (-1 / 20)  # 1 dB below full scale, as EBU R128 has it
HIGHEST_MEASURED = 0.25  # torchaudio's filters clip at full scale, and raise a peak threefold


class SoundLike(Protocol):
    """A sound whose stretches can be asked for."""

    @property
    def rate_hz(self) -> int:
        """Of the samples."""

    @property
    def num_samples(self) -> int:
        """Of a channel."""

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples [start, stop): (n, channels) float32 in [-1, 1]."""


Medium = tuple[NDArray[np.float32], int] | SoundLike
"""Samples (samples, channels) in [-1, 1] and their rate in Hz; or what reads them."""


@dataclass(frozen=True)
class Samples:
    """A sound that is in memory."""

    samples: NDArray[np.float32]
    rate_hz: int

    @property
    def num_samples(self) -> int:
        """Of a channel."""
        return len(self.samples)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return samples [start, stop)."""
        return self.samples[start:stop]


def resampled_windows(
    medium: Medium, *, window_s: float, max_windows: int, loudness: float | None = None
) -> list[Tensor]:
    """Stretches of a sound, mono at 16 kHz.

    Args:
        medium: samples (samples, channels) in [-1, 1] and their rate in Hz, or what reads them.
        window_s: seconds of a window.
        max_windows: of a sound longer than so many windows, these are taken at even distances from
            its start to its end; a shorter one is one stretch.
        loudness: LUFS that they are brought to together; None: as loud as they come.

    Returns:
        (samples,) each; none for a sound without a sample.

    Raises:
        ValueError: another shape, or a sample that is not finite.
    """
    whole = Samples(*medium) if isinstance(medium, tuple) else medium
    num_samples, rate_hz = whole.num_samples, whole.rate_hz
    if isinstance(whole, Samples) and whole.samples.ndim != 2:
        raise ValueError(f"a sound is (samples, channels), got {whole.samples.shape}")
    if num_samples == 0:
        return []
    longest = round(window_s * max_windows * rate_hz)
    length, starts = num_samples, [0]
    if num_samples > longest:
        length = longest // max_windows
        last = max(max_windows - 1, 1)
        starts = [place * (num_samples - length) // last for place in range(max_windows)]
    # windows are cut before decoding and resampling: an hour costs no more than is heard of it
    windows = [_mono(whole.read(start, start + length)) for start in starts]
    windows = [sound.resample(window, rate_hz, SAMPLE_RATE_HZ) for window in windows]
    return windows if loudness is None else _at_loudness(windows, loudness)


def checked_loudness(loudness: float | None) -> float | None:
    """A loudness in LUFS as a setting gives it.

    Raises:
        ValueError: no number, or none between -60 and -5.
    """
    if loudness is None:
        return None
    if isinstance(loudness, bool) or not isinstance(loudness, int | float):
        raise ValueError(f"loudness is {loudness!r}: give LUFS, such as -23, or leave it out")
    if not QUIETEST_LUFS <= loudness <= LOUDEST_LUFS:
        raise ValueError(
            f"loudness is {loudness:g}: allowed are {QUIETEST_LUFS:g} to {LOUDEST_LUFS:g} LUFS; "
            "-23 is broadcast's, or leave it out"
        )
    return float(loudness)


def loudness_settings(loudness: float | None) -> dict[str, Any]:
    """What a fingerprint says of a loudness: nothing where none is asked for."""
    if loudness is None:
        return {}
    return {"loudness": loudness, "peak": HIGHEST_PEAK, "silence": SILENCE_LUFS}


def measure_loudness(mono: Tensor) -> float | None:
    """Integrated loudness in LUFS of (samples,) at 16 kHz; None for silence.

    What is shorter than a block of 400 ms is measured as if it went on. Where samples pass a
    quarter of full scale, the gate of silence lies as much higher, by up to 12 dB.

    Source: ITU-R BS.1770-4, annex 1, as torchaudio has it.
    """
    if len(mono) == 0:
        return None
    if len(mono) < BLOCK:
        mono = mono.repeat(-(-BLOCK // len(mono)))
    scale = HIGHEST_MEASURED / max(float(mono.abs().max()), HIGHEST_MEASURED)
    lufs = float(sound.loudness(scale * mono[None].double(), SAMPLE_RATE_HZ))
    lufs -= 20 * math.log10(scale)
    return lufs if math.isfinite(lufs) and lufs > SILENCE_LUFS else None  # no block: not a number


def _at_loudness(windows: Sequence[Tensor], loudness: float) -> list[Tensor]:
    """Windows with one gain, so that together they have a loudness; silence stays what it is.

    A sound whose peaks would pass -1 dB of full scale stays as much quieter as they need.
    """
    together = torch.cat(list(windows))
    lufs = measure_loudness(together)
    if lufs is None:
        return list(windows)
    gain = 10 ** ((loudness - lufs) / 20)
    gain = min(gain, HIGHEST_PEAK / float(together.abs().max()))
    return [window * gain for window in windows]


def _mono(samples: NDArray[np.float32]) -> Tensor:
    mono = torch.from_numpy(np.ascontiguousarray(samples, np.float32)).mean(dim=1)
    if not bool(mono.isfinite().all()):
        raise ValueError("a sound with a sample that is not finite")
    return mono
