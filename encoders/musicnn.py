"""musicnn: a small convolutional network for music, by the patch of three seconds.

    (samples, channels), rate -MusicTransform-> (P, 187, 96) -collate-> mel (M, P, 187, 96),
    mask (M, P) -front end, three convolutions, back end-> (M, P, 200) | cut at 0 | tokens (M, T, W)

A token is what the network thinks of a patch just before it names tags. Filters that are wide in
pitch hear timbre, filters that are long in time hear rhythm.
Source: Pons and Serra, musicnn, arXiv 1909.06654; Pons et al., arXiv 1711.02520.

Legend: M items, P patches, F = 187 frames of a patch, C channels, T tokens, W width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
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
from encoders.tokens import Tokens, by_item, masked, pool_tokens, real_rows

PATCH_FRAMES, NUM_MELS = 187, 96
FFT, HOP = 512, 256
PATCH_SAMPLES = PATCH_FRAMES * HOP
COMPRESSION = 10_000.0  # of log10(1 + COMPRESSION x)
TIMBRE_CHANNELS, RHYTHM_CHANNELS, MIDDLE_CHANNELS, WIDTH = 204, 51, 64, 200
TIMBRE_BANDS = (38, 67)  # of 96: .4 and .7 of the pitch range
RHYTHM_FRAMES = (128, 64, 32)
FRONT_CHANNELS = len(TIMBRE_BANDS) * TIMBRE_CHANNELS + len(RHYTHM_FRAMES) * RHYTHM_CHANNELS
EPSILON = 1e-3  # of all its norms
PATCHES_AT_ONCE = 16  # that pass the front end where no gradient is wanted


class MusicTransform:
    """Mixes to mono, resamples to 16 kHz and takes patches of the logarithm of 96 mel bands.

    Of a longer sound `max_seconds` are heard, in patches at even distances from its start to its
    end. A sound that is shorter than a patch is repeated until it fills one.
    """

    def __init__(self, *, max_seconds: float = 60.0, loudness: float | None = None) -> None:
        """Set how much of a sound is heard.

        Args:
            max_seconds: in all; a patch is three.
            loudness: LUFS that what is heard is brought to; None: as loud as it comes, as in the
                training of its weights.

        Raises:
            ValueError: less than one patch, or no such loudness.
        """
        self.loudness = checked_loudness(loudness)
        self.max_patches = round(max_seconds * SAMPLE_RATE_HZ) // PATCH_SAMPLES
        if self.max_patches < 1:
            least = PATCH_SAMPLES / SAMPLE_RATE_HZ
            raise ValueError(f"max_seconds must be at least {least:.3f}, got {max_seconds}")
        with torch.device("cpu"):  # where sounds are read, wherever the encoder is made
            self._mel = MelSpectrogram(
                SAMPLE_RATE_HZ, n_fft=FFT, hop_length=HOP, center=True, pad_mode="constant",
                n_mels=NUM_MELS, f_min=0.0, f_max=SAMPLE_RATE_HZ / 2,
                norm="slaney", mel_scale="slaney",
            )  # fmt: skip

    def __call__(self, medium: Medium) -> Tensor | None:
        """Return patches, (P, 187, 96) float32, or None for a sound without a sample.

        Args:
            medium: samples (samples, channels) in [-1, 1] and their rate in Hz, or what reads them.

        Raises:
            ValueError: another shape, or a sample that is not finite.
        """
        windows = resampled_windows(
            medium,
            window_s=PATCH_SAMPLES / SAMPLE_RATE_HZ,
            max_windows=self.max_patches,
            loudness=self.loudness,
        )
        if not windows:
            return None
        return torch.cat([self._patches(window) for window in windows])

    def _patches(self, mono: Tensor) -> Tensor:
        """Patches of a stretch at 16 kHz: (samples,) -> (p, 187, 96); what fills none is left."""
        energy = self._mel(mono).transpose(0, 1)  # (96, frames) -> (frames, 96)
        frames = torch.log10(COMPRESSION * energy + 1)
        if len(frames) < PATCH_FRAMES:
            frames = frames.repeat(-(-PATCH_FRAMES // len(frames)), 1)[:PATCH_FRAMES]
        num_patches = len(frames) // PATCH_FRAMES
        return frames[: num_patches * PATCH_FRAMES].view(num_patches, PATCH_FRAMES, NUM_MELS)

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Pad samples on the right to the most patches.

        Returns:
            mel (M, P, 187, 96) float32, mask (M, P) bool, present (M,) bool.
        """
        most = max((len(sample) for sample in samples if sample is not None), default=1)
        mel = torch.zeros(len(samples), most, PATCH_FRAMES, NUM_MELS)
        mask = torch.zeros(len(samples), most, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                mel[row, : len(sample)] = sample
                mask[row, : len(sample)] = True
        return {"mel": mel, "mask": mask, "present": mask.any(dim=1)}

    def fingerprint(self) -> str:
        """Return the sha256 of all settings."""
        constants = (SAMPLE_RATE_HZ, FFT, HOP, NUM_MELS, PATCH_FRAMES, COMPRESSION)
        settings = {"transform": "musicnn", "constants": constants, "patches": self.max_patches}
        return fingerprint({**settings, **loudness_settings(self.loudness)})


class FrontEnd(nn.Module):
    """Filters over pitch (timbre) and over time (rhythm), the loudest pitch of each kept."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, eps=EPSILON)
        self.timbre = nn.ModuleList(
            nn.Conv2d(1, TIMBRE_CHANNELS, (7, bands), padding=(3, 0)) for bands in TIMBRE_BANDS
        )
        self.rhythm = nn.ModuleList(
            nn.Conv2d(1, RHYTHM_CHANNELS, (frames, 1)) for frames in RHYTHM_FRAMES
        )
        self.timbre_norms = nn.ModuleList(
            nn.BatchNorm2d(TIMBRE_CHANNELS, eps=EPSILON) for _ in TIMBRE_BANDS
        )
        self.rhythm_norms = nn.ModuleList(
            nn.BatchNorm2d(RHYTHM_CHANNELS, eps=EPSILON) for _ in RHYTHM_FRAMES
        )

    def forward(self, mel: Tensor) -> Tensor:
        """Map patches (n, F, 96) to (n, F, 561)."""
        if torch.is_grad_enabled():
            return self._found(mel)
        # the maps of a patch take some 30 MB, those of 32 full tracks would take 20 GB
        return torch.cat([self._found(part) for part in mel.split(PATCHES_AT_ONCE)])

    def _found(self, mel: Tensor) -> Tensor:
        maps = self.norm(mel.unsqueeze(1))
        found = [
            norm(F.relu(convolution(maps)))
            for convolution, norm in zip(self.timbre, self.timbre_norms, strict=True)
        ]
        rhythm = zip(RHYTHM_FRAMES, self.rhythm, self.rhythm_norms, strict=True)
        for frames, convolution, norm in rhythm:
            missing = frames - 1  # as many frames out as in
            padded = F.pad(maps, (0, 0, missing // 2, missing - missing // 2))
            found.append(norm(F.relu(convolution(padded))))
        return torch.cat([each.amax(dim=3) for each in found], dim=1).transpose(1, 2)


class MiddleBlock(nn.Module):
    """A convolution over seven frames, beside all that was found before it.

    Args:
        first: reads the front end; the others read the block before them, and add to it.
    """

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        before = FRONT_CHANNELS if first else MIDDLE_CHANNELS
        self.convolution = nn.Conv1d(before, MIDDLE_CHANNELS, 7, padding=3)
        self.norm = nn.BatchNorm1d(MIDDLE_CHANNELS, eps=EPSILON)

    def forward(self, found: Tensor) -> Tensor:
        """Map (n, F, C) to (n, F, C + 64)."""
        before = found if self.first else found[..., -MIDDLE_CHANNELS:]
        new = self.norm(F.relu(self.convolution(before.transpose(1, 2)))).transpose(1, 2)
        return torch.cat([found, new if self.first else new + before], dim=-1)


class BackEnd(nn.Module):
    """The loudest and the mean of each channel over a patch, and a layer of 200 units."""

    def __init__(self) -> None:
        super().__init__()
        channels = FRONT_CHANNELS + 3 * MIDDLE_CHANNELS
        self.pooled_norm = nn.BatchNorm1d(2 * channels, eps=EPSILON)
        self.dense = nn.Linear(2 * channels, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH, eps=EPSILON)

    def forward(self, found: Tensor) -> Tensor:
        """Map (n, F, 753) to (n, 1, 200)."""
        pooled = torch.stack([found.amax(dim=1), found.mean(dim=1)], dim=-1).flatten(1)
        dense: Tensor = self.norm(F.relu(self.dense(self.pooled_norm(pooled))))
        return dense.unsqueeze(1)


MusicStates = tuple[Tensor, Tensor]
"""Of each patch (M, P, F, C), and which patches are real (M, P) bool."""


class MusicEncoder(StackedEncoder):
    """musicnn without its tags, cut by layer: front end, three convolutions, back end.

    Args:
        max_patches: most that the transform gives of a sound.
        num_tokens: tokens kept of a sound.
        weights: tensors by name; None: random ones.

    Raises:
        ValueError: the weights are another model's.
    """

    modality = "audio"

    def __init__(
        self,
        *,
        max_patches: int,
        num_tokens: int = 16,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.width = self.last_width = WIDTH
        self.num_tokens, self.max_patches = num_tokens, max_patches
        self.blocks = nn.ModuleList(
            [FrontEnd(), *(MiddleBlock(first=first) for first in (True, False, False)), BackEnd()]
        )
        if weights is not None:
            own = {name: each for name, each in weights.items() if not name.startswith("tags.")}
            try:
                self.load_state_dict(own)
            except RuntimeError as error:
                first_line = str(error).splitlines()[-1].strip()
                raise ValueError(f"weights are not musicnn's: {first_line}") from None
        self.train(self.training)  # norms on their running statistics

    @property
    def stack(self) -> list[nn.Module]:
        """The layers."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """Nothing is behind the last layer."""
        return []

    def begin(self, inputs: Inputs) -> MusicStates:
        """Return the patches as they are."""
        return inputs["mel"], inputs["mask"]

    def run(self, states: MusicStates, start: int, stop: int) -> MusicStates:
        """Pass real patches through the layers [start, stop)."""
        values, mask = states
        for block in self.stack[start:stop]:
            values = by_item(block(real_rows(values, mask)), mask)
        return values, mask

    def pool(self, states: MusicStates) -> Tokens:
        """Pool the patches to num_tokens."""
        values, mask = states
        return pool_tokens(masked(values.squeeze(2), mask), self.num_tokens)

    def pack(self, states: MusicStates) -> Tokens:
        """Make a state of each frame: (M, P, F, C) -> (M, P * F, C)."""
        values, mask = states
        return masked(values.flatten(1, 2), mask.repeat_interleave(values.shape[2], dim=1))

    def unpack(self, states: Tokens) -> MusicStates:
        """Return the patches."""
        M, _, C = states.values.shape
        values = states.values.view(M, -1, PATCH_FRAMES, C)
        return values, states.mask.view(M, -1, PATCH_FRAMES)[..., 0]

    def largest_inputs(self) -> Inputs:
        """Return a sound of max_patches."""
        mask = torch.ones(1, self.max_patches, dtype=torch.bool)
        mel = torch.zeros(1, self.max_patches, PATCH_FRAMES, NUM_MELS)
        return {"mel": mel, "mask": mask, "present": torch.tensor([True])}

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, 200)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the number of tokens."""
        return {"encoder": "musicnn", "tokens": self.num_tokens}
