"""Several pictures an item to tokens: each through one image encoder, all of them pooled.

    pictures -PicturesTransform-> (P, 3, S, S) -collate-> images (M, P, 3, S, S), mask (M, P)
    -image encoder, picture by picture-> grids -pooled-> states (M, T, Ws + X) | cut at 0 | tokens

`encoders.video` does the same with frames, and says behind each token where its frame lies.

Legend: M items, P pictures, n real pictures of all items, S side in pixels, T tokens, W width of a
token, X channels that say something of a picture beside what is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs, fingerprint
from encoders.image import ImageTransform
from encoders.tokens import Tokens, by_item, masked, pool_tokens, real_rows


class PicturesTransform:
    """Prepares each picture as its image encoder sees them."""

    def __init__(self, image: ImageTransform, *, most: int) -> None:
        """Set how many pictures are seen.

        Args:
            image: of the image encoder.
            most: P, the first so many pictures of an item.

        Raises:
            ValueError: none.
        """
        if most < 1:
            raise ValueError(f"at least one picture is seen of an item, got {most}")
        self.image, self.most = image, most

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return the first pictures (H, W, 3) uint8 as (P, 3, S, S) float32."""
        return torch.stack([self.image(picture) for picture in pictures[: self.most]])

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Pad samples on the right to the most pictures.

        Returns:
            images (M, P, 3, S, S) float32, mask (M, P) bool, present (M,) bool.
        """
        return collate_pictures(samples, self.image.size)

    def fingerprint(self) -> str:
        """Return the sha256 of all settings."""
        settings = {"image": self.image.fingerprint(), "most": self.most}
        return fingerprint({"transform": "pictures", **settings})


def collate_pictures(samples: Sequence[Tensor | None], side: int) -> Inputs:
    """Stack items of unequally many pictures (P, 3, S, S); see `PicturesTransform.collate`."""
    most = max((len(sample) for sample in samples if sample is not None), default=1)
    images = torch.zeros(len(samples), most, 3, side, side)
    mask = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, sample in enumerate(samples):
        if sample is not None:
            images[row, : len(sample)] = sample
            mask[row, : len(sample)] = True
    return {"images": images, "mask": mask, "present": mask.any(dim=1)}


PictureStates = tuple[Any, Tensor]
"""States of the image encoder for all real pictures, and which pictures are real (M, P) bool."""


class PicturesEncoder(StackedEncoder):
    """An image encoder over the pictures of items, cut where the image encoder can be.

    Args:
        image: the image encoder; its grid is pooled to few tokens a picture.
        most: P, most pictures of an item.
        num_tokens: tokens kept of an item, means of neighbours where there are more.
    """

    modality = "image"
    extra_channels = 0

    def __init__(self, image: StackedEncoder, *, most: int, num_tokens: int) -> None:
        super().__init__()
        self.image = image
        self.most, self.num_tokens = most, num_tokens
        self.last_width = image.last_width + self.extra_channels
        self.width = image.width + self.extra_channels
        self.is_transformer = image.is_transformer

    def describe(self, mask: Tensor) -> Tensor:
        """What is said of each real picture beside what is in it: (M, P) bool -> (n, X)."""
        return torch.zeros(int(mask.sum()), 0, device=mask.device)

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks of the image encoder."""
        return self.image.stack

    @property
    def end(self) -> list[nn.Module]:
        """The end of the image encoder."""
        return self.image.end

    def begin(self, inputs: Inputs) -> PictureStates:
        """Pass the real pictures into the image encoder."""
        mask = inputs["mask"]
        images = real_rows(inputs["images"], mask)  # (n, 3, S, S)
        present = torch.ones(len(images), dtype=torch.bool, device=images.device)
        return self.image.begin({"images": images, "present": present}), mask

    def run(self, states: PictureStates, start: int, stop: int) -> PictureStates:
        """Pass the states of all pictures through the blocks [start, stop)."""
        return self.image.run(states[0], start, stop), states[1]

    def pool(self, states: PictureStates) -> Tokens:
        """Pool each picture's grid, add what is said of the picture, and pool the item."""
        of_pictures, mask = states
        tokens = self.image.pool(of_pictures)  # (n, T, Ws)
        said = self.describe(mask).to(tokens.values.dtype)
        said = said[:, None, :].expand(-1, tokens.values.shape[1], -1)
        whole = by_item(torch.cat([tokens.values, said], dim=2), mask).flatten(1, 2)
        real = by_item(tokens.mask, mask).flatten(1, 2)
        return pool_tokens(masked(whole, real), self.num_tokens)

    def finish(self, values: Tensor) -> Tensor:
        """Apply the image encoder's end to its own channels."""
        sizes = [values.shape[-1] - self.extra_channels, self.extra_channels]
        own, said = values.split(sizes, dim=-1)
        return torch.cat([self.image.finish(own), said], dim=-1)

    def pack(self, states: PictureStates) -> Tokens:
        """Lay the states of an item's pictures one behind the other."""
        of_pictures, mask = states
        packed = self.image.pack(of_pictures)
        return masked(*(by_item(each, mask).flatten(1, 2) for each in (packed.values, packed.mask)))

    def unpack(self, states: Tokens) -> PictureStates:
        """Return the states of the real pictures."""
        M, _, W = states.values.shape
        of_a_picture = self.state_tokens // self.most
        values = states.values.view(M, -1, of_a_picture, W)
        real = states.mask.view(M, -1, of_a_picture)
        mask = real[..., 0]
        return self.image.unpack(Tokens(values[mask], real[mask])), mask

    def extend(self, states: PictureStates, extra: Tensor) -> PictureStates:
        """Put tokens (P, W) behind those of each picture."""
        return self.image.extend(states[0], extra), states[1]

    def shorten(self, states: PictureStates, num_tokens: int) -> PictureStates:
        """Take the last tokens of each picture away again."""
        return self.image.shorten(states[0], num_tokens), states[1]

    def largest_inputs(self) -> Inputs:
        """Return an item of as many empty pictures as there can be."""
        images = self.image.largest_inputs()["images"]
        mask = torch.ones(1, self.most, dtype=torch.bool)
        pictures = images.expand(self.most, *images.shape[1:]).unsqueeze(0)
        return {"images": pictures, "mask": mask, "present": torch.tensor([True])}

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the image encoder's, and how many tokens are kept."""
        return {
            "encoder": type(self).__name__,
            "image": self.image.arguments(),
            "tokens": self.num_tokens,
        }
