"""Thresholds that follow a quantile of the clients' update norms (Andrew et al., arXiv 1905.03871)."""

import math
from dataclasses import dataclass


@dataclass
class AdaptiveNorm:
    """`tff.aggregators.PrivateQuantileEstimationProcess` without noise, and the threshold made from it.

    After each round C <- C exp(-rate (b - quantile)) with b the fraction of clients at or under C. A round
    applies the value that the round before it left.

    Attributes:
        estimate: C, the estimate of the quantile.
        quantile: Share of clients that should be at or under C.
        rate: Geometric learning rate.
        multiplier: The threshold is multiplier C + increment.
        increment: See multiplier.
    """

    estimate: float
    quantile: float
    rate: float
    multiplier: float = 1.0
    increment: float = 0.0

    @property
    def threshold(self) -> float:
        """What norms are compared with in this round."""
        return self.multiplier * self.estimate + self.increment

    def update(self, below: int, clients: int) -> None:
        """Adapt to a round in which `below` of `clients` clients were at or under `estimate`."""
        if clients:
            self.estimate *= math.exp(-self.rate * (below / clients - self.quantile))


def default_zeroing() -> AdaptiveNorm:
    """`tff.learning`'s adaptive zeroing of L-infinity norms: an outlier is far above what others send."""
    return AdaptiveNorm(10.0, quantile=0.98, rate=math.log(10.0), multiplier=2.0, increment=1.0)


def default_clipping() -> AdaptiveNorm:
    """`tff.learning`'s adaptive clipping of global L2 norms."""
    return AdaptiveNorm(1.0, quantile=0.8, rate=0.2)
