"""Norms that follow a quantile of the clients' updates."""

import numpy as np
import pytest

from server.adaptive_norm import AdaptiveNorm, default_clipping, default_zeroing


def test_norms_follow_the_quantile() -> None:
    norm = AdaptiveNorm(1.0, quantile=0.5, rate=1.0)
    norm.update(below=4, clients=4)
    assert norm.threshold == pytest.approx(np.exp(-0.5))
    norm.update(below=0, clients=4)
    assert norm.threshold == pytest.approx(1.0)
    norm.update(below=0, clients=0)
    assert norm.threshold == pytest.approx(1.0)


def test_the_default_norms_are_tffs() -> None:
    """`tff.learning`'s: zeroing at 2 C + 1, C from 10, quantile 0.98, rate ln 10; clipping from 1, 0.8, 0.2."""
    zeroing, clipping = default_zeroing(), default_clipping()
    assert (zeroing.threshold, clipping.threshold) == (21.0, 1.0)
    for norm in (zeroing, clipping):
        norm.update(below=1, clients=4)
    assert zeroing.threshold == pytest.approx(2 * 10 * 10 ** (0.98 - 1 / 4) + 1)
    assert clipping.threshold == pytest.approx(np.exp(0.2 * (0.8 - 1 / 4)))
