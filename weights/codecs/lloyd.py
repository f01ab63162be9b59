"""The best 2^bits levels for a standard normal variable."""

import functools
from statistics import NormalDist

import numpy as np
import torch

from weights.codecs.codec import Floats

_ITERATIONS = 500


@functools.cache
def lloyd_max(bits: int) -> Floats:
    """Levels of the quantiser of 2^bits levels with the least mean squared error.

    Lloyd's iteration (Lloyd 1982, Max 1960): a level is the mean of its cell, cells meet halfway
    between levels. It starts from what is best for many levels, where their density is the cube root
    of the normal's (Panter & Dite 1951): a normal of variance 3.

    Returns:
        (2^bits,) float32, ascending, symmetric.
    """
    wide = NormalDist(sigma=3**0.5)
    count = 1 << bits
    levels = np.array([wide.inv_cdf((index + 0.5) / count) for index in range(count)])
    for _ in range(_ITERATIONS):
        ends = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-(ends**2) / 2) / np.sqrt(2 * np.pi)
        below = torch.special.ndtr(torch.from_numpy(ends)).numpy()
        levels = -np.diff(density) / np.diff(below)
        levels = (levels - levels[::-1]) / 2  # differences of `below` near 1 are inexact
    return levels.astype(np.float32)
