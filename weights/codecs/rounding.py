"""Rounding to whole numbers: to the nearest, or at random so that the mean is exact."""

import numpy as np

from weights.codecs.codec import Floats


def check_rounding(rounding: str) -> str:
    """`rounding` itself, or ValueError unless it is a known one."""
    if rounding not in ("stochastic", "nearest"):
        raise ValueError(f"rounding must be stochastic or nearest, not {rounding!r}")
    return rounding


def rounded(values: Floats, rounding: str, rng: np.random.Generator) -> Floats:
    """Round in place: floor(x + 1/2), or floor(x + u) with u uniform in [0, 1), whose mean is x.

    Args:
        values: (n,) float32, overwritten.
        rounding: See `check_rounding`.
        rng: Draws n numbers if stochastic.

    Returns:
        `values`, of whole numbers.
    """
    values += 0.5 if rounding == "nearest" else rng.random(values.shape, np.float32)
    return np.floor(values, out=values)
