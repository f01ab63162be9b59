"""The weighted mean of model updates, one update in memory at a time."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from weights.named import SMALL, Array, is_finite
from weights.threads import one_thread

_GATHERED = ""
"""What small arrays are kept under, all in one: no parameter has this name."""


class WeightedMean:
    """sum_k weight_k update_k / sum_k weight_k, in float32 like `tff.learning.robust_aggregator`'s mean.

    Small arrays are gathered into one: to start operations on each would take longer than all the rest.

    Args:
        like: Names, shapes and dtypes; the sums' memory is taken once and serves round after round.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        gathered = {
            name: tensor
            for name, tensor in like.items()
            if tensor.numel() <= SMALL and tensor.dtype == torch.float32
        }
        sizes = [tensor.numel() for tensor in gathered.values()]
        self._small, self._large = [*gathered], [name for name in like if name not in gathered]
        self._sums = {name: torch.zeros_like(like[name]) for name in self._large}
        parts = dict(self._sums)
        if gathered:
            self._room = np.empty(sum(sizes), np.float32)
            self._sums[_GATHERED] = torch.zeros(sum(sizes))
            parts |= zip(gathered, self._sums[_GATHERED].split_with_sizes(sizes), strict=True)
        self._mean = {name: parts[name].view(tensor.shape) for name, tensor in like.items()}
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.total_weight = 0.0
        self.largest_weight = 0.0
        self._empty = True

    def add(self, update: Mapping[str, Array], weight: float) -> bool:
        """Add one client's update, in place, unless it holds a NaN or an infinity: whether it was added."""
        arrays = {name: update[name] for name in self._large}
        if self._small:
            small = [update[name] for name in self._small]
            arrays[_GATHERED] = np.concatenate(small, axis=None, out=self._room)
        with one_thread():
            if not is_finite(arrays):
                return False
            for name, total in self._sums.items():
                if self._empty:
                    torch.mul(torch.from_numpy(arrays[name]), weight, out=total)
                else:
                    total.add_(torch.from_numpy(arrays[name]), alpha=weight)
        self.total_weight += weight
        self.largest_weight = max(self.largest_weight, weight)
        self._empty = False
        return True

    def mean(self) -> dict[str, Tensor] | None:
        """The mean, in the sums' memory: it holds until `reset`, and is asked for once; None if it is not finite."""
        finite = True
        for name, total in self._sums.items():
            total.div_(self.total_weight)
            finite = finite and is_finite({name: total.numpy()})  # now, while it is in the cache
        return self._mean if finite else None
