"""Codecs that keep every element, at full or half precision."""

import math
from typing import ClassVar

import numpy as np

from weights.codecs.codec import Codec, Floats, Reader, bounded, check_threshold, flat


class Identity(Codec):
    """float32 as it is: what a run without compression gives, over the path of a run with it."""

    name: ClassVar[str] = "identity"
    unbiased = True

    def __init__(self, threshold: int = Codec.threshold) -> None:
        self.threshold = check_threshold(threshold)

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """4 bytes an element."""
        return flat(array).astype("<f4", copy=False).tobytes()

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """The very same bits."""
        reader = Reader(payload)
        values = reader.floats(math.prod(shape))
        reader.end()
        return values.reshape(shape)


class Float16(Codec):
    """IEEE half precision, rounded to nearest even; what is beyond its range becomes its largest value, 65504."""

    name: ClassVar[str] = "float16"
    unbiased = False

    def __init__(self, threshold: int = Codec.threshold) -> None:
        self.threshold = check_threshold(threshold)

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """2 bytes an element."""
        largest = np.finfo(np.float16).max
        return np.clip(flat(array), -largest, largest).astype("<f2").tobytes()

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """Every half is a float32."""
        reader = Reader(payload)
        values = reader.take("<f2", math.prod(shape)).astype(np.float32)
        reader.end()
        return bounded(values).reshape(shape)


class BFloat16(Codec):
    """The upper half of a float32, rounded to nearest even: 8 bits of precision, full range."""

    name: ClassVar[str] = "bfloat16"
    unbiased = False

    def __init__(self, threshold: int = Codec.threshold) -> None:
        self.threshold = check_threshold(threshold)

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """2 bytes an element."""
        bits = flat(array).view(np.uint32)
        # Just under half of the last place that stays, and just as much as half where that place is odd.
        rounding = ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        return ((bits + rounding) >> np.uint32(16)).astype("<u2").tobytes()

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """Every bfloat16 is a float32."""
        reader = Reader(payload)
        bits = reader.take("<u2", math.prod(shape)).astype(np.uint32)
        reader.end()
        return bounded((bits << np.uint32(16)).view(np.float32)).reshape(shape)
