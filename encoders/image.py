"""Pictures to tokens: the transform, an encoder over any backbone's parts, and a small one.

    (H, W, 3) uint8 -ImageTransform-> (3, S, S) -collate-> images (M, 3, S, S), present (M,)
    -stem, blocks-> grid -pooled to 4 x 4-> states (M, 16, Ws) | cut at 0 | -head-> (M, 16, W)

The backbones themselves are taken apart in `image_towers.py`.
Legend: M items, S side in pixels, T tokens, W width of a token, C channels, h x w a grid.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from encoders.cut import StackedEncoder
from encoders.encoder import Inputs, fingerprint, hold_batch_norm
from encoders.tokens import Tokens

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LONGEST_ASPECT = 8  # a banner of 20 x 20,000 pixels would grow to 256 x 256,000 before its crop

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["crop", "squash"]


class ImageTransform:
    """Resizes a picture as its backbone was trained to see it: no augmentation."""

    def __init__(
        self,
        *,
        size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        resize: Resize = "crop",
        resize_side: int | None = None,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        """Set the geometry and the scale.

        Args:
            size: side in pixels of what comes out.
            mean: per channel, of values in [0, 1].
            std: per channel.
            resize: "crop" brings the short side to `resize_side` and cuts the centre out; "squash"
                changes the proportions and keeps all of the picture.
            resize_side: short side before the crop, `size` if not given.
            interpolation: always with antialiasing.
        """
        self.size = size
        self.mean, self.std = tuple(mean), tuple(std)
        self.resize: Resize = resize
        self.resize_side = resize_side or size
        self.interpolation: Interpolation = interpolation

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the keys of a weights folder's config.json that say how pictures are prepared."""
        names = ("size", "mean", "std", "resize", "resize_side", "interpolation")
        return cls(**{name: config[name] for name in names if name in config})

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return the picture as (3, size, size) float32.

        Args:
            pixels: (H, W, 3) uint8, RGB.

        Raises:
            ValueError: another shape or type.
        """
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(f"a picture is (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
        # Brings torch's compiler along: seconds that who reads states from the cache is spared.
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as pictures

        image = Image.fromarray(pixels)
        mode = InterpolationMode(self.interpolation)
        if self.resize == "squash":
            image = pictures.resize(image, [self.size, self.size], mode)
        else:
            longest = LONGEST_ASPECT * min(image.size)
            if max(image.size) > longest:
                image = pictures.center_crop(image, [min(s, longest) for s in image.size[::-1]])
            image = pictures.resize(image, [self.resize_side], mode)
            image = pictures.center_crop(image, [self.size, self.size])
        scaled: Tensor = pictures.normalize(
            pictures.to_tensor(image), list(self.mean), list(self.std), inplace=True
        )
        return scaled

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Stack samples; a missing one becomes zeros.

        Returns:
            images (M, 3, size, size) float32, present (M,) bool.
        """
        images = torch.zeros(len(samples), 3, self.size, self.size)
        for row, sample in enumerate(samples):
            if sample is not None:
                images[row] = sample
        present = torch.tensor([sample is not None for sample in samples], dtype=torch.bool)
        return {"images": images, "present": present}

    def fingerprint(self) -> str:
        """Return the sha256 of all settings."""
        return fingerprint({"transform": "image", **vars(self)})


def pool_grid(grid: Tensor, side: int) -> Tokens:
    """Average a grid of states into at most side x side tokens, row by row.

    Equal to adaptive average pooling, whose backward pass has no deterministic CUDA kernel; two
    products with averaging matrices do. A grid with fewer rows or columns keeps them.

    Args:
        grid: (M, C, h, w).
        side: tokens a side.

    Returns:
        Tokens (M, side * side, C), real ones first.
    """
    M, C, h, w = grid.shape
    rows = _averaging(h, min(h, side)).to(grid)
    columns = _averaging(w, min(w, side)).to(grid)
    pooled = torch.einsum("ih,jw,mchw->mijc", rows, columns, grid).reshape(M, -1, C)
    num_real = pooled.shape[1]
    values = nn.functional.pad(pooled, (0, 0, 0, side * side - num_real))
    mask = torch.arange(side * side, device=grid.device) < num_real
    return Tokens(values, mask.expand(M, -1).contiguous())


def _averaging(length: int, bins: int) -> Tensor:
    """Weights (bins, length) of adaptive average pooling."""
    weights = torch.zeros(bins, length)
    for i in range(bins):
        start, stop = i * length // bins, -(-(i + 1) * length // bins)
        weights[i, start:stop] = 1 / (stop - start)
    return weights


def to_map(states: Tensor) -> Tensor:
    """Return the square map (M, C, s, s) whose states (M, s * s, C) stand row by row."""
    M, T, C = states.shape
    side = math.isqrt(T)
    return states.transpose(1, 2).reshape(M, C, side, side)


def all_real(values: Tensor) -> Tokens:
    """Return Tokens (M, T, C) without padding."""
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device))


class ImageEncoder(StackedEncoder):
    """A backbone as stem, blocks and head; the cut at 0 lies between the blocks and the head.

    A backbone with a class token keeps it as the first token, before the grid: it is the vector
    that CLIP and most vision transformers were trained to give. So such a tower has 17 tokens.
    """

    modality = "image"

    def __init__(
        self,
        *,
        stem: nn.Module,
        blocks: Sequence[nn.Module],
        head: nn.Module,
        state_width: int,
        width: int,
        transform: ImageTransform,
        arguments: Mapping[str, Any],
        num_prefix_tokens: int = 0,
        class_token: bool = False,
        has_maps: bool = True,
        grid_side: int = 4,
    ) -> None:
        """Put the parts together.

        Args:
            stem: images (M, 3, S, S) to the states of the first block.
            blocks: each maps states to states: maps (M, C, h, w), or sequences (M, N, C) of prefix
                tokens and then a square grid, row by row.
            head: maps tokens (M, T, state_width) to (M, T, width), each by itself.
            state_width: of the states at the cut.
            width: of the tokens that come out.
            transform: how this backbone sees a picture.
            arguments: what tells this architecture from others, for the fingerprint.
            num_prefix_tokens: tokens before the grid in a sequence.
            class_token: keep the first of them as a token.
            has_maps: blocks take maps, not sequences.
            grid_side: the grid is pooled to grid_side x grid_side tokens.
        """
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.last_width, self.width = state_width, width
        self.transform = transform
        self.num_prefix_tokens, self.class_token = num_prefix_tokens, class_token
        self.has_maps, self.is_transformer = has_maps, not has_maps
        self.grid_side = grid_side
        self.num_tokens = grid_side * grid_side + int(class_token)
        self._arguments = {**arguments, "grid_side": grid_side, "class_token": class_token}
        hold_batch_norm(self)

    @property
    def stack(self) -> list[nn.Module]:
        """The blocks: of a CNN its stages; empty where they are not told apart."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """The head."""
        return [self.head]

    def begin(self, inputs: Inputs) -> Tensor:
        """Pass images (M, 3, S, S) through the stem."""
        images = inputs["images"].contiguous(memory_format=torch.channels_last)
        states: Tensor = self.stem(images)
        return states

    def run(self, states: Tensor, start: int, stop: int) -> Tensor:
        """Pass maps (M, C, h, w) or sequences (M, N, C) through the blocks [start, stop)."""
        for block in self.stack[start:stop]:
            states = block(states)
        return states

    def pool(self, states: Tensor) -> Tokens:
        """Pool the grid; a class token that is kept comes first."""
        if states.ndim == 4:
            return pool_grid(states, self.grid_side)
        grid = to_map(states[:, self.num_prefix_tokens :])
        tokens = pool_grid(grid, self.grid_side)
        if not self.class_token:
            return tokens
        return Tokens(
            torch.cat([states[:, :1], tokens.values], dim=1),
            torch.cat([tokens.mask.new_ones(len(states), 1), tokens.mask], dim=1),
        )

    def finish(self, values: Tensor) -> Tensor:
        """Apply the head."""
        tokens: Tensor = self.head(values)
        return tokens

    def pack(self, states: Tensor) -> Tokens:
        """Lay a map out row by row; a sequence is one already."""
        return all_real(states.flatten(2).transpose(1, 2) if self.has_maps else states)

    def unpack(self, states: Tokens) -> Tensor:
        """Return the map or the sequence."""
        return to_map(states.values) if self.has_maps else states.values

    def extend(self, states: Tensor, extra: Tensor) -> Tensor:
        """Put tokens (P, W) behind a sequence."""
        return torch.cat([states, extra.to(states.dtype).expand(len(states), -1, -1)], dim=1)

    def shorten(self, states: Tensor, num_tokens: int) -> Tensor:
        """Take the last tokens away again."""
        return states[:, :-num_tokens]

    def largest_inputs(self) -> Inputs:
        """Return an empty picture."""
        return self.transform.collate([torch.zeros(3, self.transform.size, self.transform.size)])

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the class token where there is one, else the mean over the grid, (M, width).

        The mean differs a little from a backbone's own global pooling: bins of the grid overlap
        where its side is no multiple of grid_side, and the head works on pooled states.
        """
        return tokens.values[:, 0] if self.class_token else tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return the architecture's name and how its grid is pooled."""
        return {"encoder": "image", **self._arguments}


class SmallImageEncoder(StackedEncoder):
    """A small convolutional network to train from scratch: 64 pixels, 0.3 M parameters."""

    modality = "image"

    def __init__(self, *, width: int = 128, size: int = 64, grid_side: int = 4) -> None:
        """Make random weights from torch's generator.

        Args:
            width: channels of the last stage and width of a token, a multiple of 32.
            size: side of the pictures in pixels; 64 gives a grid of 4 x 4.
            grid_side: the grid is pooled to grid_side x grid_side tokens.

        Raises:
            ValueError: width is no multiple of 32.
        """
        if width < 32 or width % 32:  # the first stage has a quarter, in groups of 8
            raise ValueError(f"width is {width}: allowed are 32, 64 and further multiples of 32")
        super().__init__()
        self.width = self.last_width = width
        self.grid_side = grid_side
        self.num_tokens = grid_side * grid_side
        self.transform = ImageTransform(size=size, resize="squash", interpolation="bilinear")
        self.stem = _stage(3, width // 4, stride=2)
        widths = (width // 4, width // 2, 3 * width // 4, width)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.ModuleList(_stage(before, after, stride=2) for before, after in pairs)
        self.refine = _stage(width, width, stride=1)
        self.head = nn.LayerNorm(width)

    @property
    def stack(self) -> list[nn.Module]:
        """The stages that halve the side."""
        return list(self.blocks)

    @property
    def end(self) -> list[nn.Module]:
        """What refines the last stage, and the final norm."""
        return [self.refine, self.head]

    def begin(self, inputs: Inputs) -> Tensor:
        """Pass images (M, 3, S, S) through the first stage."""
        images = inputs["images"].contiguous(memory_format=torch.channels_last)
        states: Tensor = self.stem(images)
        return states

    def run(self, states: Tensor, start: int, stop: int) -> Tensor:
        """Pass maps (M, C, h, w) through the stages [start, stop)."""
        for block in self.stack[start:stop]:
            states = block(states)
        return states

    def pool(self, states: Tensor) -> Tokens:
        """Refine the map and pool it."""
        return pool_grid(states + self.refine(states), self.grid_side)

    def finish(self, values: Tensor) -> Tensor:
        """Apply the final norm."""
        normed: Tensor = self.head(values)
        return normed

    def pack(self, states: Tensor) -> Tokens:
        """Lay a map out row by row."""
        return all_real(states.flatten(2).transpose(1, 2))

    def unpack(self, states: Tokens) -> Tensor:
        """Return the map."""
        return to_map(states.values)

    def largest_inputs(self) -> Inputs:
        """Return an empty picture."""
        return self.transform.collate([torch.zeros(3, self.transform.size, self.transform.size)])

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the mean over tokens, (M, width)."""
        return tokens.pooled()

    def arguments(self) -> dict[str, Any]:
        """Return how the grid is pooled."""
        return {"encoder": "small-image", "grid_side": self.grid_side}


def _stage(before: int, after: int, *, stride: int) -> nn.Sequential:
    """Convolution, GroupNorm over groups of 8 channels, ReLU: no statistics across items."""
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(after // 8, after), nn.ReLU())
