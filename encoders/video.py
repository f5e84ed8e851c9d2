"""Clips to tokens: frames through an image encoder, each with its place in time.

    clip -VideoTransform-> frames (F, 3, S, S) -collate-> images (M, F, 3, S, S), mask (M, F)
    -image encoder, frame by frame-> grids -pooled-> states (M, T, Ws + 8) | cut at 0 | tokens

Behind a token's own channels stand eight that say where in the clip its frame lies: waves of the
place, from the first frame to the last. So a clip played backwards has other tokens.

Legend: M items, F frames, n real frames of all items, S side in pixels, T tokens, W width of a
token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.encoder import Inputs, fingerprint
from encoders.image import ImageTransform
from encoders.pictures import PicturesEncoder, collate_pictures

NUM_WAVES = 4
PLACE_CHANNELS = 2 * NUM_WAVES

Rule = Literal["uniform", "keyframes"]


class ClipLike(Protocol):
    """A clip whose frames can be asked for."""

    def frames(self, num_frames: int, *, side: int, rule: Rule) -> Sequence[NDArray[np.uint8]]:
        """Return at most so many frames (H, W, 3) uint8, evenly spread, oldest first."""


class VideoTransform:
    """Takes frames of a clip and prepares each as its image encoder sees pictures."""

    def __init__(
        self, image: ImageTransform, *, num_frames: int = 8, rule: Rule = "uniform"
    ) -> None:
        """Set which frames are seen.

        Args:
            image: of the image encoder.
            num_frames: F, most frames of a clip.
            rule: `uniform` in time, or `keyframes`, which cost less where clips are long.

        Raises:
            ValueError: no frame, or another rule.
        """
        if num_frames < 1:
            raise ValueError(f"frames is {num_frames}: at least 1 is seen of a clip")
        if rule not in ("uniform", "keyframes"):
            raise ValueError(f"rule is '{rule}': allowed are uniform and keyframes")
        self.image, self.num_frames, self.rule = image, num_frames, rule

    def __call__(self, clip: ClipLike) -> Tensor:
        """Return the frames, (F, 3, S, S) float32."""
        frames = clip.frames(self.num_frames, side=self.image.resize_side, rule=self.rule)
        return torch.stack([self.image(frame) for frame in frames])

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Pad samples on the right to the most frames.

        Returns:
            images (M, F, 3, S, S) float32, mask (M, F) bool, present (M,) bool.
        """
        return collate_pictures(samples, self.image.size)

    def fingerprint(self) -> str:
        """Return the sha256 of all settings."""
        settings = {"image": self.image.fingerprint(), "frames": self.num_frames}
        return fingerprint({"transform": "video", "rule": self.rule, **settings})


def places(mask: Tensor) -> Tensor:
    """Where each real frame lies between the first (0) and the last (1): (M, F) bool -> (n,)."""
    rank = mask.cumsum(dim=1) - 1
    last = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return (rank / last)[mask]


def waves(place: Tensor) -> Tensor:
    """(n,) places in [0, 1] -> (n, 8): cosines and sines of half a turn, one, one and a half, two.

    The slowest cosine tells the first half from the last, the others tell neighbours apart.
    """
    turns = torch.arange(1, NUM_WAVES + 1, device=place.device) * math.pi
    angle = place[:, None] * turns
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class VideoEncoder(PicturesEncoder):
    """An image encoder over the frames of clips, each with its place in time.

    Args:
        image: the image encoder; its grid is pooled to few tokens a frame.
        most: F, most frames of a clip.
        num_tokens: tokens kept of a clip, means of neighbours in time where there are more.
    """

    modality = "video"
    extra_channels = PLACE_CHANNELS

    def describe(self, mask: Tensor) -> Tensor:
        """Return waves of each frame's place: (M, F) bool -> (n, 8)."""
        return waves(places(mask))
