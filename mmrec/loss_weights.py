"""What each task's loss weighs beside that of the next item: as set, or learned from its noise."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn


class LossWeights(nn.Module):
    """The terms of the sum that a step minimises, one a task.

        fixed    L + sum_t w_t L_t
        learned  exp(-s) L + s / 2 + sum_t [ c_t exp(-s_t) L_t + s_t / 2 ]

    L is the loss of the next item; s = log sigma^2 is learned, the log variance of a task's noise;
    c is 1/2 of squared errors, 1 of cross-entropies. Learned weights start where fixed ones stay,
    s_t = -log(w_t / c_t), and come to rest where a weighted loss is 1/2.
    Source: Kendall et al., arXiv 1705.07115, equations 7 and 10, and section 3.2 for s.

    Args:
        weights: w of each task beside the next item, by name.
        learned: have a log variance for each, and for the next item.
        squared: those of the tasks whose loss is a squared error.
    """

    def __init__(
        self, weights: Mapping[str, float], *, learned: bool = False, squared: Container[str] = ()
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.share = {name: 0.5 if name in squared else 1.0 for name in weights}
        self.log_variance = nn.Parameter(torch.zeros(())) if learned else None
        # a task may be called like a method of ParameterDict, `items` or `values`
        self.log_variances = nn.ParameterDict(
            {
                f"of_{name}": nn.Parameter(torch.tensor(-math.log(weight / self.share[name])))
                for name, weight in (weights.items() if learned else ())
            }
        )

    def of_next_item(self, loss: Tensor) -> Tensor:
        """The term of the next item, whose loss may be a sum of several that stand together."""
        if self.log_variance is None:
            return loss
        return (-self.log_variance).exp() * loss + self.log_variance / 2

    def of_task(self, name: str, loss: Tensor) -> Tensor:
        """The term of another task."""
        if self.log_variance is None:
            return self.weights[name] * loss
        learned: Tensor = self.log_variances[f"of_{name}"]
        return self.share[name] * (-learned).exp() * loss + learned / 2

    def current(self) -> dict[str, Tensor]:
        """Copies of what is learned, by the names they are logged with; empty where nothing is."""
        if self.log_variance is None:
            return {}
        found = {"log_variance": self.log_variance}
        found |= {f"{name}_log_variance": self.log_variances[f"of_{name}"] for name in self.weights}
        return {name: each.detach().clone() for name, each in found.items()}
