"""Only the largest elements."""

import math
from typing import ClassVar

import numpy as np

from weights.codecs import entropy
from weights.codecs.codec import SMALLEST, Codec, Floats, Reader, check_threshold, flat
from weights.codecs.contexts import Group
from weights.wire import WireError


class TopK(Codec):
    """The largest elements in magnitude, with the precision of float16; the others become zero.

    Positions are coded as gaps. A gap's entropy is that of a bitmap of all positions where these are
    independent, and less where they bunch, so there is no bitmap to choose instead.

    Args:
        fraction: Of the elements, above 0 and at most 1, rounded up to a whole element.
        threshold: See `Codec`.
    """

    name: ClassVar[str] = "topk"
    unbiased = False

    def __init__(self, fraction: float = 0.01, threshold: int = Codec.threshold) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
        self.fraction = fraction
        self.threshold = check_threshold(threshold)

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """The largest magnitude as float32, kept values as float16 fractions of it, then the gaps."""
        values = flat(array)
        kept = self._kept(len(values))
        where = np.sort(np.argpartition(np.abs(values), len(values) - kept)[len(values) - kept :])
        gaps = np.diff(where, prepend=-1).astype(np.int32) - 1
        scale = np.abs(values[where]).max(initial=SMALLEST).astype("<f4")
        ratios = (values[where] / scale).astype("<f2")
        header: bytes = scale.tobytes() + ratios.tobytes()
        return header + entropy.encode(gaps, _one_group(kept))

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """Values where they belong, zeros elsewhere."""
        count = math.prod(shape)
        kept = self._kept(count)
        reader = Reader(payload)
        scale = reader.floats(1)
        ratios = reader.take("<f2", kept).astype(np.float32)
        if not bool(np.all(np.abs(ratios) <= 1)):
            raise WireError("the payload holds a value beyond its scale")
        gaps = entropy.decode(reader, _one_group(kept))
        where = np.cumsum(gaps, dtype=np.int64) + np.arange(kept)
        if kept and (gaps.min() < 0 or where[-1] >= count):
            raise WireError("the payload holds an impossible position")
        values = np.zeros(count, np.float32)
        values[where] = ratios * scale
        return values.reshape(shape)

    def _kept(self, count: int) -> int:
        """How many of `count` elements are kept."""
        return min(count, math.ceil(self.fraction * count))


def _one_group(count: int) -> list[Group]:
    return [np.arange(count)] if count else []
