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
    assert default_zeroing().threshold == 21.0
    assert default_clipping().threshold == 1.0
