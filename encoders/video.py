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
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs, fingerprint
from encoders.image import ImageTransform
from encoders.tokens import Tokens, masked, pool_tokens

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
        most = max((len(sample) for sample in samples if sample is not None), default=1)
        side = self.image.size
        images = torch.zeros(len(samples), most, 3, side, side)
        mask = torch.zeros(len(samples), most, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                images[row, : len(sample)] = sample
                mask[row, : len(sample)] = True
        return {"images": images, "mask": mask, "present": mask.any(dim=1)}

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


VideoStates = tuple[Any, Tensor]
"""States of the image encoder for all real frames, and which frames are real (M, F) bool."""


class VideoEncoder(StackedEncoder):
    """An image encoder over the frames of clips, cut where the image encoder can be.

    Args:
        image: the image encoder; its grid is pooled to few tokens a frame.
        num_frames: F, most frames of a clip.
        num_tokens: tokens kept of a clip, means of neighbours in time where there are more.
    """

    modality = "video"

    def __init__(self, image: StackedEncoder, *, num_frames: int, num_tokens: int = 32) -> None:
        super().__init__()
        self.image = image
        self.num_frames, self.num_tokens = num_frames, num_tokens
        self.last_width = image.last_width + PLACE_CHANNELS
        self.width = image.width + PLACE_CHANNELS
        self.is_transformer = image.is_transformer

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks of the image encoder."""
        return self.image.stack

    @property
    def end(self) -> list[nn.Module]:
        """The end of the image encoder."""
        return self.image.end

    def begin(self, inputs: Inputs) -> VideoStates:
        """Pass the real frames into the image encoder."""
        mask = inputs["mask"]
        images = inputs["images"][mask]  # (n, 3, S, S)
        present = torch.ones(len(images), dtype=torch.bool, device=images.device)
        return self.image.begin({"images": images, "present": present}), mask

    def run(self, states: VideoStates, start: int, stop: int) -> VideoStates:
        """Pass the states of all frames through the blocks [start, stop)."""
        return self.image.run(states[0], start, stop), states[1]

    def pool(self, states: VideoStates) -> Tokens:
        """Pool each frame's grid, say where the frame lies, and pool the clip."""
        of_frames, mask = states
        tokens = self.image.pool(of_frames)  # (n, T, Ws)
        where = waves(places(mask)).to(tokens.values.dtype)
        where = where[:, None, :].expand(-1, tokens.values.shape[1], -1)
        whole = _by_item(torch.cat([tokens.values, where], dim=2), mask)
        real = _by_item(tokens.mask, mask)
        return pool_tokens(masked(whole, real), self.num_tokens)

    def finish(self, values: Tensor) -> Tensor:
        """Apply the image encoder's end to its own channels."""
        own, where = values.split([values.shape[-1] - PLACE_CHANNELS, PLACE_CHANNELS], dim=-1)
        return torch.cat([self.image.finish(own), where], dim=-1)

    def pack(self, states: VideoStates) -> Tokens:
        """Lay the states of an item's frames one behind the other."""
        of_frames, mask = states
        packed = self.image.pack(of_frames)
        return masked(_by_item(packed.values, mask), _by_item(packed.mask, mask))

    def unpack(self, states: Tokens) -> VideoStates:
        """Return the states of the real frames."""
        M, _, W = states.values.shape
        of_a_frame = self.state_tokens // self.num_frames
        values = states.values.view(M, -1, of_a_frame, W)
        real = states.mask.view(M, -1, of_a_frame)
        mask = real[..., 0]
        return self.image.unpack(Tokens(values[mask], real[mask])), mask

    def extend(self, states: VideoStates, extra: Tensor) -> VideoStates:
        """Put tokens (P, W) behind those of each frame."""
        return self.image.extend(states[0], extra), states[1]

    def shorten(self, states: VideoStates, num_tokens: int) -> VideoStates:
        """Take the last tokens of each frame away again."""
        return self.image.shorten(states[0], num_tokens), states[1]

    def largest_inputs(self) -> Inputs:
        """Return an empty clip of num_frames."""
        images = self.image.largest_inputs()["images"]
        mask = torch.ones(1, self.num_frames, dtype=torch.bool)
        frames = images.expand(self.num_frames, -1, -1, -1).unsqueeze(0)
        return {"images": frames, "mask": mask, "present": torch.tensor([True])}

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the image encoder's, and how many tokens are kept."""
        return {"encoder": "video", "image": self.image.arguments(), "tokens": self.num_tokens}


def _by_item(of_frames: Tensor, mask: Tensor) -> Tensor:
    """Rows of real frames (n, T, …) to their items' (M, F * T, …), zeros for frames not there."""
    whole = of_frames.new_zeros(*mask.shape, *of_frames.shape[1:])
    return whole.index_put((mask,), of_frames).flatten(1, 2)
