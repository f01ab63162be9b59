"""TFF's quantiser: `tff.aggregators.EncodedSumFactory.quantize_above_threshold`."""

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from weights.codecs import entropy
from weights.codecs.bits import pack_bits, packed_size, unpack_bits
from weights.codecs.codec import SMALLEST, Codec, Floats, Reader, check_threshold, flat
from weights.codecs.contexts import read_scales, scales_of
from weights.codecs.rounding import check_rounding, rounded
from weights.wire import WireError

Symbols = npt.NDArray[np.int32]


class Uniform(Codec):
    """2^bits levels, evenly spaced from a tensor's minimum to its maximum.

    Args:
        bits: Per element, 1 to 16.
        rounding: "stochastic", which is unbiased and what TFF does, or "nearest".
        threshold: See `Codec`.
        entropy: Code the symbols by how often they occur; the decoded array is the same.
    """

    name: ClassVar[str] = "uniform"

    def __init__(
        self,
        bits: int = 8,
        rounding: str = "stochastic",
        threshold: int = Codec.threshold,
        entropy: bool = False,
    ) -> None:
        if not 1 <= bits <= 16:
            raise ValueError(f"bits must be from 1 to 16, not {bits}")
        self.bits = bits
        self.intervals = (1 << bits) - 1
        self.rounding = check_rounding(rounding)
        self.unbiased = rounding == "stochastic"
        self.threshold = check_threshold(threshold)
        self.entropy = entropy

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """Minimum and maximum as float32, then the symbols."""
        values = flat(array)
        ends = np.array([values.min(), values.max()] if values.size else [0, 0], "<f4")
        low, spread = float(ends[0]), float(ends[1]) - float(ends[0])
        position = values - np.float32(low)
        position *= np.float32(self.intervals / spread if spread >= SMALLEST else 0.0)
        symbols = np.minimum(rounded(position, self.rounding, rng), self.intervals, out=position)
        if not self.entropy:
            return ends.tobytes() + pack_bits(symbols.astype(np.uint16), self.bits)
        scales = scales_of(values, array.shape)
        centred = symbols.astype(np.int32) - self._zero(ends)
        return ends.tobytes() + scales.tobytes() + entropy.encode(centred, scales.groups())

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """Minimum + symbol * interval."""
        reader = Reader(payload)
        ends = reader.floats(2)
        low, spread = float(ends[0]), float(ends[1]) - float(ends[0])
        if spread < 0:
            raise WireError("the payload's minimum is above its maximum")
        values = self._symbols(reader, ends, shape).astype(np.float32)
        values *= np.float32(spread / self.intervals)
        values += np.float32(low)
        return values.reshape(shape)

    def _symbols(
        self, reader: Reader, ends: Floats, shape: tuple[int, ...]
    ) -> npt.NDArray[np.uint16] | Symbols:
        """The rest of the payload as (n,) integers from 0 to 2^bits - 1."""
        count = math.prod(shape)
        if not self.entropy:
            packed = reader.take("u1", packed_size(count, self.bits))
            reader.end()
            return unpack_bits(packed, count, self.bits)
        symbols = entropy.decode(reader, read_scales(reader, shape).groups())
        symbols += self._zero(ends)
        if count and not 0 <= symbols.min() <= symbols.max() <= self.intervals:
            raise WireError("the payload holds a symbol out of range")
        return symbols

    def _zero(self, ends: Floats) -> np.int32:
        """The symbol nearest to the value 0, where most symbols are."""
        low, high = map(float, ends)
        where = -low / (high - low) if high > low else 0.0
        return np.int32(round(min(max(where, 0.0), 1.0) * self.intervals))
