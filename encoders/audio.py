"""Sound to tokens: log-mel frames, and a small convolutional network over them.

    (samples, channels), rate -AudioTransform-> (F, 64) -collate-> mel (M, F, 64), mask (M, F),
    present (M,) -below-> states (M, 16, W) | cut at 0 | -above-> tokens (M, 16, W)

Legend: M items, F frames of 10 ms, T tokens, W width, C channels of a convolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.transforms import MelSpectrogram

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs, fingerprint
from encoders.sound import (
    SAMPLE_RATE_HZ,
    Medium,
    checked_loudness,
    loudness_settings,
    resampled_windows,
)
from encoders.tokens import Tokens, masked, pool_tokens

WINDOW = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms
# The resampler rolls off just below 8 kHz: above 7.6 kHz a sound depends on its first rate.
LOWEST_HZ, HIGHEST_HZ = 20.0, 7_600.0
FLOOR = 1e-5  # of the mel energy: about the noise of 16-bit samples
NUM_WINDOWS = 4
FRAME = 512  # samples that a frame's spectrum is made of

AudioStates = tuple[Tensor, Tensor]
"""Maps (M, C, F, B) between two blocks, and which frames are real (M, F) bool."""


class AudioTransform:
    """Mixes to mono, resamples to 16 kHz and takes the logarithm of 64 mel bands.

    Of a sound longer than `max_seconds`, four windows are taken at even distances from its
    start to its end: a song's middle alone would miss how it begins and ends.
    """

    def __init__(
        self, *, max_seconds: float = 10.0, num_mels: int = 64, loudness: float | None = None
    ) -> None:
        """Set how much of a sound is heard.

        Args:
            max_seconds: in all, at least 0.2.
            num_mels: bands.
            loudness: LUFS that what is heard is brought to; None: as loud as it comes.

        Raises:
            ValueError: it is shorter, or no such loudness.
        """
        if max_seconds < 0.2:
            raise ValueError(f"max_seconds must be at least 0.2, got {max_seconds}")
        self.max_seconds, self.loudness = max_seconds, checked_loudness(loudness)
        self.num_mels = num_mels
        with torch.device("cpu"):  # where sounds are read, wherever the encoder is made
            self._mel = MelSpectrogram(
                SAMPLE_RATE_HZ, n_fft=FRAME, win_length=WINDOW, hop_length=HOP, center=False,
                f_min=LOWEST_HZ, f_max=HIGHEST_HZ, n_mels=num_mels,
            )  # fmt: skip

    def __call__(self, medium: Medium) -> Tensor | None:
        """Return the log-mel frames, (F, 64) float32, or None for a sound without a sample.

        Args:
            medium: samples (samples, channels) in [-1, 1] and their rate in Hz, or what reads them.

        Raises:
            ValueError: another shape, or a sample that is not finite.
        """
        windows = resampled_windows(
            medium,
            window_s=self.max_seconds / NUM_WINDOWS,
            max_windows=NUM_WINDOWS,
            loudness=self.loudness,
        )
        if not windows:
            return None
        return torch.cat([self._frames(window) for window in windows])

    @property
    def max_frames(self) -> int:
        """Most frames that come out, whatever the sound's rate from 8 kHz on."""
        longest = self.max_seconds * SAMPLE_RATE_HZ
        return max(_most_frames(longest), NUM_WINDOWS * _most_frames(longest / NUM_WINDOWS))

    def _frames(self, mono: Tensor) -> Tensor:
        missing = self._mel.n_fft - len(mono)
        if missing > 0:  # shorter than a frame: silence fills it
            mono = nn.functional.pad(mono, (0, missing))
        energy = self._mel(mono).transpose(0, 1)  # (64, F) -> (F, 64)
        scaled: Tensor = (energy.clamp(min=FLOOR).log() + 4.0) / 4.0  # about -2 to 2
        return scaled

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Pad samples on the right to the longest.

        Returns:
            mel (M, F, 64) float32, mask (M, F) bool, present (M,) bool.
        """
        longest = max((len(sample) for sample in samples if sample is not None), default=1)
        mel = torch.zeros(len(samples), longest, self.num_mels)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                mel[row, : len(sample)] = sample
                mask[row, : len(sample)] = True
        return {"mel": mel, "mask": mask, "present": mask.any(dim=1)}

    def fingerprint(self) -> str:
        """Return the sha256 of all settings."""
        constants = (SAMPLE_RATE_HZ, WINDOW, HOP, self.num_mels, LOWEST_HZ, HIGHEST_HZ, FLOOR)
        return fingerprint(
            {
                "transform": "audio",
                "constants": constants,
                "windows": NUM_WINDOWS,
                "max_seconds": self.max_seconds,
                **loudness_settings(self.loudness),
            }
        )


def _most_frames(samples: float) -> int:
    """Frames of so many samples and the few that resampling may add."""
    return max(0, math.ceil(samples) + 4 - FRAME) // HOP + 1


class AudioEncoder(StackedEncoder):
    """Four strided convolutions over time and pitch, about 0.3 M parameters, to train from scratch.

    Padding is put back to zero before each convolution and norms stay within a frame, so that a
    sound gives the same tokens whatever it is padded to. A token spans 160 ms before pooling.
    """

    modality = "audio"

    def __init__(
        self,
        *,
        num_mels: int = 64,
        width: int = 128,
        num_tokens: int = 16,
        max_frames: int = 1000,
    ) -> None:
        """Make random weights from torch's generator.

        Args:
            num_mels: bands of the transform, a multiple of 16.
            width: of a token, a multiple of 4.
            num_tokens: tokens kept of a sound.
            max_frames: most frames that the transform gives, for the size of states at a cut.

        Raises:
            ValueError: num_mels is no multiple of 16, or width none of 4.
        """
        super().__init__()
        if num_mels % 16 or width % 4:
            raise ValueError(
                f"an audio encoder needs num_mels a multiple of 16 and width one of 4, "
                f"got {num_mels} and {width}"
            )
        self.width = self.last_width = width
        self.num_tokens = num_tokens
        self.num_mels, self.max_frames = num_mels, max_frames
        widths = (1, width // 4, width // 2, 3 * width // 4, width)
        self.blocks = nn.ModuleList(
            AudioBlock(before, after) for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.join = nn.Linear(width * (num_mels // 16), width)
        self.head = nn.LayerNorm(width)

    @property
    def stack(self) -> list[nn.Module]:
        """The convolutions."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """What joins the bands of a frame, and the final norm."""
        return [self.join, self.head]

    def begin(self, inputs: Inputs) -> AudioStates:
        """Return the frames as maps of one channel."""
        return inputs["mel"].unsqueeze(1), inputs["mask"]  # (M, 1, F, 64)

    def run(self, states: AudioStates, start: int, stop: int) -> AudioStates:
        """Pass maps through the convolutions [start, stop)."""
        maps, mask = states
        for block in self.stack[start:stop]:
            maps, mask = block(maps, mask)
        return maps, mask

    def pool(self, states: AudioStates) -> Tokens:
        """Join the bands of each frame and pool: ceil(F / 16) real tokens, up to num_tokens."""
        maps, mask = states
        flat = maps.permute(0, 2, 1, 3).flatten(2)  # (M, W, F/16, 4) -> (M, F/16, 4 W)
        return pool_tokens(masked(self.join(flat), mask), self.num_tokens)

    def finish(self, values: Tensor) -> Tensor:
        """Apply the final norm."""
        normed: Tensor = self.head(values)
        return normed

    def pack(self, states: AudioStates) -> Tokens:
        """Make one state of a frame's channels and bands: (M, C, F, B) -> (M, F, C * B)."""
        maps, mask = states
        return masked(maps.permute(0, 2, 1, 3).flatten(2), mask)

    def unpack(self, states: Tokens) -> AudioStates:
        """Return the maps."""
        M, F, _ = states.values.shape
        assert self.trained_blocks is not None
        halved = len(self.blocks) - self.trained_blocks
        maps = states.values.view(M, F, -1, self.num_mels >> halved).permute(0, 2, 1, 3)
        return maps, states.mask

    def largest_inputs(self) -> Inputs:
        """Return a sound of max_frames frames."""
        mask = torch.ones(1, self.max_frames, dtype=torch.bool)
        mel = torch.zeros(1, self.max_frames, self.num_mels)
        return {"mel": mel, "mask": mask, "present": torch.tensor([True])}

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the number of tokens."""
        return {"encoder": "audio", "tokens": self.num_tokens}


class AudioBlock(nn.Module):
    """A convolution of stride 2 over frames and bands, a norm over channels, GELU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(after)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Map states (M, C, F, B) and their mask (M, F) to half as many frames and bands.

        Frame i of the result is centred on frame 2 i, so it is real where that one is.
        """
        states = states.masked_fill(~mask[:, None, :, None], 0.0)
        maps = self.convolution(states).permute(0, 2, 3, 1)  # (M, C, F, B) -> (M, F, B, C)
        maps = nn.functional.gelu(self.norm(maps)).permute(0, 3, 1, 2)
        return maps, mask[:, ::2]
