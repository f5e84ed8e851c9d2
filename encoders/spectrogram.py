"""Audio spectrogram transformers (AST): windows of ten seconds as pictures of pitch and time.

    (samples, channels), rate -SpectrogramTransform-> (P, F, B) -collate-> images (M, P, F, B),
    mask (M, P) -embeddings, blocks, window by window-> (M, T, W) | cut at 0 | -norm-> tokens

A window gives the mean of the model's own summary tokens, then means over pitch of stretches of
time. `PicturesEncoder` takes the windows of a sound together, as it does pictures of an item.
Source: Gong et al., AST, arXiv 2104.01778.

Legend: M items, P windows, n real windows of all items, F frames of a window, B mel bands, T
tokens, W width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import fbank

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs, fingerprint
from encoders.image import all_real
from encoders.pictures import PicturesEncoder
from encoders.sound import (
    SAMPLE_RATE_HZ,
    Medium,
    checked_loudness,
    loudness_settings,
    resampled_windows,
)
from encoders.tokens import Tokens, pool_tokens

FRAME_S = 0.01
NUM_PREFIX = 2  # the class token and that of distillation


class SpectrogramTransform:
    """Mixes to mono, resamples to 16 kHz and takes log-mel windows as the model was trained on.

    Args:
        num_frames: F, of 10 ms.
        num_mels: B.
        max_seconds: heard of a sound, in windows at even distances from its start to its end.
        mean: of the log-mel values in training.
        std: of them.
        loudness: LUFS that what is heard is brought to; None: as loud as it comes, as in the
            training of AST.

    Raises:
        ValueError: max_seconds is shorter than a window, or no such loudness.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        num_mels: int,
        max_seconds: float,
        mean: float,
        std: float,
        loudness: float | None = None,
    ) -> None:
        self.loudness = checked_loudness(loudness)
        self.num_frames, self.num_mels = num_frames, num_mels
        self.mean, self.std = mean, std
        self.window_s = num_frames * FRAME_S
        self.most = int(max_seconds / self.window_s + 1e-6)
        if self.most < 1:
            raise ValueError(
                f"max_seconds is {max_seconds}: a window of this model takes {self.window_s:g}"
            )

    def __call__(self, medium: Medium) -> Tensor | None:
        """Return windows, (P, F, B) float32, or None for a sound without a sample.

        Args:
            medium: samples (samples, channels) in [-1, 1] and their rate in Hz, or what reads them.

        Raises:
            ValueError: another shape, or a sample that is not finite.
        """
        length = round(self.window_s * SAMPLE_RATE_HZ)
        windows: list[Tensor] = []
        parts = resampled_windows(
            medium, window_s=self.window_s, max_windows=self.most, loudness=self.loudness
        )
        for part in parts:
            windows += part.split(length) if len(part) > length else [part]
        windows = windows[: self.most]
        return torch.stack([self._frames(window) for window in windows]) if windows else None

    def _frames(self, mono: Tensor) -> Tensor:
        """Log-mel frames of a window, with silence behind a short one: (F, B)."""
        least = SAMPLE_RATE_HZ // 40  # a frame spans 25 ms
        if len(mono) < least:
            mono = nn.functional.pad(mono, (0, least - len(mono)))
        found = fbank(
            mono[None],
            sample_frequency=SAMPLE_RATE_HZ,
            window_type="hanning",
            num_mel_bins=self.num_mels,
            htk_compat=True,
            use_energy=False,
            dither=0.0,
            frame_shift=1000 * FRAME_S,
        )[: self.num_frames]
        found = nn.functional.pad(found, (0, 0, 0, self.num_frames - len(found)))
        return (found - self.mean) / (2 * self.std)

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Pad samples on the right to the most windows.

        Returns:
            images (M, P, F, B) float32, mask (M, P) bool, present (M,) bool.
        """
        most = max((len(sample) for sample in samples if sample is not None), default=1)
        images = torch.zeros(len(samples), most, self.num_frames, self.num_mels)
        mask = torch.zeros(len(samples), most, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                images[row, : len(sample)] = sample
                mask[row, : len(sample)] = True
        return {"images": images, "mask": mask, "present": mask.any(dim=1)}

    def fingerprint(self) -> str:
        """Return the sha256 of all settings."""
        settings = {name: value for name, value in vars(self).items() if name != "loudness"}
        settings |= loudness_settings(self.loudness)
        return fingerprint({"transform": "spectrogram", **settings})


class WindowEncoder(StackedEncoder):
    """A spectrogram transformer over one window, cut between any two of its blocks.

    Args:
        model: transformers' ASTModel; its modules are moved, do not use it afterwards.
        num_tokens: of a window, the summary among them; 2 at least.

    Raises:
        ValueError: fewer tokens.
    """

    modality = "audio"
    is_transformer = True

    def __init__(self, model: Any, *, num_tokens: int) -> None:
        super().__init__()
        if num_tokens < NUM_PREFIX:
            raise ValueError(
                f"a window has {num_tokens} tokens, 2 are the least: a summary and the whole"
            )
        self.embeddings: nn.Module = model.embeddings
        self.blocks = nn.ModuleList(model.layers)
        self.norm: nn.Module = model.layernorm
        config = model.config
        self.num_frames, self.num_mels = int(config.max_length), int(config.num_mel_bins)
        self.num_bands = (self.num_mels - config.patch_size) // config.frequency_stride + 1
        self.width = self.last_width = int(config.hidden_size)
        self.num_tokens = num_tokens
        self.model_type = str(config.model_type)

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """The final norm."""
        return [self.norm]

    def begin(self, inputs: Inputs) -> Tensor:
        """Embed the patches of windows (n, F, B): (n, 2 + N, W)."""
        states: Tensor = self.embeddings(inputs["images"])
        return states

    def run(self, states: Tensor, start: int, stop: int) -> Tensor:
        """Pass sequences through the blocks [start, stop)."""
        for block in self.stack[start:stop]:
            found = block(states)
            states = found[0] if isinstance(found, tuple) else found
        return states

    def pool(self, states: Tensor) -> Tokens:
        """The mean of the summary tokens, then means over pitch, pooled over time."""
        n, _, W = states.shape
        summary = states[:, :NUM_PREFIX].mean(dim=1, keepdim=True)
        over_pitch = states[:, NUM_PREFIX:].view(n, self.num_bands, -1, W).mean(dim=1)
        over_time = pool_tokens(all_real(over_pitch), self.num_tokens - 1)
        values = torch.cat([summary, over_time.values], dim=1)
        return Tokens(values, nn.functional.pad(over_time.mask, (1, 0), value=True))

    def finish(self, values: Tensor) -> Tensor:
        """Apply the final norm."""
        normed: Tensor = self.norm(values)
        return normed

    def pack(self, states: Tensor) -> Tokens:
        """Return the sequences as they are."""
        return all_real(states)

    def unpack(self, states: Tokens) -> Tensor:
        """Return the sequences."""
        return states.values

    def extend(self, states: Tensor, extra: Tensor) -> Tensor:
        """Put tokens (P, W) behind a sequence."""
        return torch.cat([states, extra.to(states.dtype).expand(len(states), -1, -1)], dim=1)

    def shorten(self, states: Tensor, num_tokens: int) -> Tensor:
        """Take the last tokens away again."""
        return states[:, :-num_tokens]

    def largest_inputs(self) -> Inputs:
        """Return an empty window."""
        images = torch.zeros(1, self.num_frames, self.num_mels)
        return {"images": images, "present": torch.tensor([True])}

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the summary token, (M, W)."""
        return tokens.values[:, 0]

    def arguments(self) -> dict[str, Any]:
        """Return the architecture's name and how many tokens are kept."""
        return {"encoder": self.model_type, "tokens": self.num_tokens}


class SpectrogramEncoder(PicturesEncoder):
    """A spectrogram transformer over the windows of sounds."""

    modality = "audio"
