"""The weighted mean of model updates, one update in memory at a time."""

from collections.abc import Mapping

import torch
from torch import Tensor

from weights.named import Array


class WeightedMean:
    """sum_k weight_k update_k / sum_k weight_k, in float32 like `tff.learning.robust_aggregator`'s mean.

    Args:
        like: Names, shapes and dtypes; the sums' memory is taken once and serves round after round.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._sums = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.total_weight = 0.0
        self.largest_weight = 0.0
        self._empty = True

    def add(self, update: Mapping[str, Array], weight: float) -> None:
        """Add one client's update, in place."""
        for name, total in self._sums.items():
            if self._empty:
                torch.mul(torch.from_numpy(update[name]), weight, out=total)
            else:
                total.add_(torch.from_numpy(update[name]), alpha=weight)
        self.total_weight += weight
        self.largest_weight = max(self.largest_weight, weight)
        self._empty = False

    def mean(self) -> dict[str, Tensor]:
        """The mean, in the sums' memory: it holds until `reset`, and is asked for once."""
        return {name: total.div_(self.total_weight) for name, total in self._sums.items()}
