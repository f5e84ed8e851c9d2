"""A recurrent layer over packed histories: the user model of GRU4Rec.

torch's recurrent layers take sequences packed by time: the first events of all histories, then the
second ones, and so on. Ours are packed by history, so that going there and back is an order of
rows, and no padding is computed.
"""

from __future__ import annotations

from torch import Tensor, nn

from fusion.blocks import Dropout, Packing


class RecurrentBlock(nn.Module):
    """One layer of a gated recurrent unit, which starts each history at zero.

    Source: Hidasi et al., GRU4Rec, arXiv 1511.06939: layers one above the other, with dropout on
    what each gives, and no residual branches. Their loss is not part of it.
    """

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.recurrence = nn.GRU(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, events: Tensor, packing: Packing) -> Tensor:
        """(num_rows, D) -> (num_rows, D), in the dtype of the weights whatever autocast says.

        A state passes through as many steps as there are events, and rounding would add up; bf16
        would also make a CPU keep kernels for each number of histories that are still going on.
        """
        if not packing.num_events:
            return events  # torch refuses a sequence of no steps
        values = events.to(next(self.recurrence.parameters()).dtype)
        return self.dropout(packing.through_time(self.recurrence, values))
