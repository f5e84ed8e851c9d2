"""Ready-made vectors as an encoder: one column of the catalogue's own, one token an item."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.encoder import Inputs, fingerprint
from encoders.tokens import Tokens, masked


class VectorTransform:
    """Checks a vector and makes it float32."""

    def __init__(self, width: int) -> None:
        """Set the width that all vectors of the column have."""
        self.width = width

    def __call__(self, vector: NDArray[np.floating]) -> Tensor:
        """Return the vector, (width,) float32.

        Raises:
            ValueError: another shape, or a value that is not finite.
        """
        sample = torch.from_numpy(np.array(vector, dtype=np.float32))
        if sample.shape != (self.width,):
            raise ValueError(f"a vector of shape {tuple(sample.shape)}, expected ({self.width},)")
        if not bool(sample.isfinite().all()):
            raise ValueError("a vector with a value that is not finite")
        return sample

    def collate(self, samples: Sequence[Tensor | None]) -> Inputs:
        """Stack samples; a missing one becomes zeros.

        Returns:
            vectors (M, width) float32, present (M,) bool.
        """
        missing = torch.zeros(self.width)
        present = torch.tensor([sample is not None for sample in samples], dtype=torch.bool)
        rows = [missing if sample is None else sample for sample in samples]
        vectors = torch.stack(rows) if rows else torch.zeros(0, self.width)
        return {"vectors": vectors, "present": present}

    def fingerprint(self) -> str:
        """Return the sha256 of the width."""
        return fingerprint({"transform": "vector", "width": self.width})


class VectorEncoder(nn.Module):
    """Gives each vector as one token; it has no weights, fusion scales and projects."""

    def __init__(self, width: int, *, name: str | None = None) -> None:
        """Set the width of the column's vectors, and its name."""
        super().__init__()
        self.modality = f"vector.{name}" if name else "vector"
        self.width = self.state_width = width
        self.num_tokens = 1

    def below(self, inputs: Inputs) -> Tokens:
        """Return the vectors as tokens.

        Args:
            inputs: vectors (M, width), present (M,) bool.

        Returns:
            Tokens (M, 1, width).
        """
        return masked(inputs["vectors"].unsqueeze(1), inputs["present"].unsqueeze(1))

    def above(self, states: Tokens) -> Tokens:
        """Return the states as they are."""
        return states

    def forward(self, inputs: Inputs) -> Tokens:
        """Return tokens (M, 1, width) of the inputs of `VectorTransform.collate`."""
        return self.above(self.below(inputs))

    def pooled(self, tokens: Tokens) -> Tensor:
        """Return the vectors, (M, width); zeros for a missing one."""
        return tokens.pooled()

    def fingerprint(self) -> str:
        """Return the sha256 of name and width."""
        return fingerprint({"encoder": self.modality, "width": self.width})
