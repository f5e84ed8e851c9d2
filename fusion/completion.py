"""What an item would be with the media it lacks, as far as those it has let one expect.

    content without some modalities, which ─► + affine map of it ─► content

A model learns each item's own part beside a content that has all of its media. Where one of them is
gone later (a picture was taken down, a service lost a kind of media), the fusion's answer from the
rest lies elsewhere and the two no longer fit. Ridge regression over the items of training says
where the whole content would lie, for each set of modalities that can be missing. Nothing here is
trained by gradients; before it is fitted every map is nought.

It is for items that training met. New items and queries are what their media say: made up for, they
come to resemble the average, and a title finds its own item less often.

Legend: n items · M modalities · S = 2^M sets of missing ones · D width.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor, nn

MOST_MODALITIES = 5
"""With more there are too many sets to fit, and contents stay as they are."""
RIDGE = 0.03
"""Of centred unit contents. The maps are used on the items that they were fitted to."""


class Completion(nn.Module):
    """Maps from contents that lack modalities to what they would be with them.

    Args:
        modalities: M names, in the order of the bits.
        width: D.
    """

    maps: Tensor

    def __init__(self, modalities: Sequence[str], width: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        sets = 2 ** len(self.modalities) if len(self.modalities) <= MOST_MODALITIES else 1
        self.register_buffer("maps", torch.zeros(sets, width + 1, width))

    def forward(self, content: Tensor, missing: Tensor) -> Tensor:
        """Completes contents.

        Args:
            content: (n, D) unit vectors made of what the items have.
            missing: (n, M) bool, what they should have and lack.

        Returns:
            (n, D); an item that lacks nothing, or what was never fitted, as it was. What is made up
            is shorter than 1, the less is known of it: its product with a user is the score to be
            expected, and beside it an item's own part counts more.
        """
        if len(self.maps) == 1:
            return content
        bits = 2 ** torch.arange(len(self.modalities), device=content.device)
        lacking = (missing * bits).sum(1)  # (n,) which map
        result = content.clone()
        for row in lacking.unique().tolist():
            weights = self.maps[row]
            if row == 0 or not weights.any():
                continue
            chosen = lacking == row
            own = content[chosen]
            result[chosen] = own + own @ weights[:-1] + weights[-1]
        return result

    @torch.no_grad()
    def fit(self, missing: Set[str], without: Tensor, whole: Tensor) -> None:
        """Learns the map of one set.

        Args:
            missing: names of what is left out.
            without: (n, D) contents of items of training without it.
            whole: (n, D) their contents with all they have.
        """
        inputs, change = without.double(), (whole - without).double()
        centre, mean = inputs.mean(0), change.mean(0)
        inputs = inputs - centre
        squares = inputs.T @ inputs
        squares.diagonal().add_(RIDGE)
        weights = torch.linalg.solve(squares, inputs.T @ (change - mean))
        row = sum(2**bit for bit, name in enumerate(self.modalities) if name in missing)
        self.maps[row] = torch.cat([weights, (mean - centre @ weights)[None]]).float()
