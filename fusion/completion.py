"""What an item would be with the media it lacks, as far as those it has let one expect.

    content without some modalities, which ─► + affine map of it ─► content

A model learns each item's own part beside a content that has all of its media. Where one of them is
gone later (a picture was taken down, a service lost a kind of media), the fusion's answer from the
rest lies elsewhere and the two no longer fit. Ridge regression over the items of training says
where the whole content would lie, for each set of modalities that can be missing. Nothing here is
trained by gradients; before it is fitted every map is nought.

Items that training did not meet have maps of their own, for users' scores alone and for media alone
that nearly all items of training have: users were only ever compared with contents that hold them.
As content such items, and queries, are what their media say: made up for, they come to resemble the
average, and a title finds its own item less often.

Legend: n items · M modalities · S = 2^M sets of missing ones · D width.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_MODALITIES = 5
"""With more there are too many sets to fit, and contents stay as they are."""
RIDGE = 0.03
"""Of centred unit contents. The maps are used on the items that they were fitted to."""
RIDGE_OF_NEW = 1.0
"""Of the maps for items that they were not fitted to: they have to trust single items less. Of .03,
.3, 1 and 10 new products of a shop without text rank best with .3 and 1 (NDCG@10 .0970, with 10
.0932), and without attributes 1 costs less than .3 (.0854, .0851)."""
LENGTH_OF_NEW = 0.95
"""Of what is made up for new items. At 1 those that lack a medium take more room in lists than
whole ones, and the warm cost that was asked for is passed: where a part of the new items lacks one
modality, known ones fall from .1916 to .1807 (music) and .0612 to .0596 (shop), at .95 to .1856 and
.0609 (validation NDCG@10, one seed). Their own length, .6 to .9, leaves them hardly any room."""
EXPECTED_SHARE = 0.9
"""Of the items of training. What more of them lack is no loss: users met such items as they are."""


class Completion(nn.Module):
    """Maps from contents that lack modalities to what they would be with them.

    Args:
        modalities: M names, in the order of the bits.
        width: D.
    """

    maps: Tensor
    maps_of_new: Tensor
    expected: Tensor

    def __init__(self, modalities: Sequence[str], width: int) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        sets = 2 ** len(self.modalities) if len(self.modalities) <= MOST_MODALITIES else 1
        self.register_buffer("maps", torch.zeros(sets, width + 1, width))
        self.register_buffer("maps_of_new", torch.zeros(sets, width + 1, width))
        # (M,) what nearly all items of training have
        self.register_buffer("expected", torch.zeros(len(self.modalities), dtype=torch.bool))

    def forward(self, content: Tensor, missing: Tensor) -> Tensor:
        """Completes contents of items that training met.

        Args:
            content: (n, D) unit vectors made of what the items have.
            missing: (n, M) bool, what they should have and lack.

        Returns:
            (n, D); an item that lacks nothing, or what was never fitted, as it was. What is made up
            is shorter than 1, the less is known of it: its product with a user is the score to be
            expected, and beside it an item's own part counts more.
        """
        return self._completed(self.maps, content, missing)

    def of_new(self, content: Tensor, has: Tensor) -> Tensor:
        """Completes contents of items that training did not meet, for what users are compared with.

        Args:
            content: (n, D) unit vectors made of what the items have.
            has: (n, M) bool, what they have.

        Returns:
            (n, D); an item that lacks nothing that is expected, or has nothing at all, as it was.
            What is made up has a length of .95, whatever is known of it: its score stands beside
            those of whole items.
        """
        missing = self.expected & ~has & has.any(1, keepdim=True)
        completed = self._completed(self.maps_of_new, content, missing)
        changed = (completed != content).any(1, keepdim=True)
        return torch.where(changed, LENGTH_OF_NEW * F.normalize(completed, dim=1), content)

    def _completed(self, maps: Tensor, content: Tensor, missing: Tensor) -> Tensor:
        if len(maps) == 1:
            return content
        bits = 2 ** torch.arange(len(self.modalities), device=content.device)
        lacking = (missing * bits).sum(1)  # (n,) which map
        result = content.clone()
        for row in lacking.unique().tolist():
            weights = maps[row]
            if row == 0 or not weights.any():
                continue
            chosen = lacking == row
            own = content[chosen]
            result[chosen] = own + own @ weights[:-1] + weights[-1]
        return result

    @torch.no_grad()
    def fit(self, missing: Set[str], without: Tensor, whole: Tensor) -> None:
        """Learns the maps of one set: one for these items, and one for others.

        Args:
            missing: names of what is left out.
            without: (n, D) contents of items of training without it.
            whole: (n, D) their contents with all they have.
        """
        inputs, change = without.double(), (whole - without).double()
        centre, mean = inputs.mean(0), change.mean(0)
        inputs = inputs - centre
        squares, products = inputs.T @ inputs, inputs.T @ (change - mean)
        row = sum(2**bit for bit, name in enumerate(self.modalities) if name in missing)
        for maps, ridge in ((self.maps, RIDGE), (self.maps_of_new, RIDGE_OF_NEW)):
            ridged = squares.clone()
            ridged.diagonal().add_(ridge)
            weights = torch.linalg.solve(ridged, products)
            maps[row] = torch.cat([weights, (mean - centre @ weights)[None]]).float()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Models from before new items were completed hold nothing for it: they serve as before."""
        for name in ("maps_of_new", "expected"):
            state_dict.setdefault(prefix + name, torch.zeros_like(self.get_buffer(name)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
