"""A uniform quantiser whose step is chosen for each tensor, with its symbols entropy-coded.

At high rates no other quantiser of single elements needs fewer bits for the same error, and none of
any kind over 0.25 bits fewer (Gish & Pierce 1968); at low rates zeros make it a sparsifier.
"""

from typing import ClassVar

import numpy as np

from weights.codecs import entropy
from weights.codecs.codec import LARGEST, SMALLEST, Codec, Floats, Reader, check_threshold, flat
from weights.codecs.contexts import Group, read_scales, scales_of
from weights.codecs.rounding import check_rounding, rounded
from weights.named import max_abs

# Elements that a step is searched on, drawn at random from larger tensors.
_SAMPLE = 2**17
# The search covers 2^-22 to 2^6 of the largest magnitude: from all of a float32's precision to
# rounding nearly everything to zero. 12 halvings leave 0.6% of a step, which is 0.01 bits.
_FINEST, _COARSEST, _HALVINGS = -22.0, 6.0, 12

RESOLUTION = 2.0**-23
"""The finest step, as a share of the largest value: float32 resolves no finer, and symbols stay exact in it."""


class Step(Codec):
    """x becomes step * round(x / step). Give one of `bits`, `error` and `step`.

    Args:
        bits: Of the whole payload per element; at most 16.
        error: ||decoded - x||^2 / ||x||^2, expected.
        step: The step itself, in the tensor's unit.
        rounding: "stochastic", which is unbiased, or "nearest", which errs less for the same bytes.
        threshold: See `Codec`.
    """

    name: ClassVar[str] = "step"

    def __init__(
        self,
        bits: float = 0.0,
        error: float = 0.0,
        step: float = 0.0,
        rounding: str = "stochastic",
        threshold: int = Codec.threshold,
    ) -> None:
        given = [value for value in (bits, error, step) if value != 0]
        if len(given) != 1 or not 0 < given[0] < float("inf") or bits > 16:
            raise ValueError("give one of bits (at most 16), error and step, and above 0")
        self.bits, self.error, self.step = bits, error, step
        self.rounding = check_rounding(rounding)
        self.unbiased = rounding == "stochastic"
        self.threshold = check_threshold(threshold)

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """The step as float32, 0 for a tensor of zeros, then scales and symbols."""
        values = flat(array)
        largest = max_abs(values)
        if largest < SMALLEST:
            return np.zeros(1, "<f4").tobytes()
        scales = scales_of(values, array.shape)
        groups = scales.groups()
        wanted = self.step or self._search(values, groups, 4 + len(scales.tobytes()), rng)
        step = np.float32(min(max(wanted, largest * RESOLUTION), LARGEST))
        symbols = rounded(values / step, self.rounding, rng).astype(np.int32)
        header: bytes = step.astype("<f4").tobytes() + scales.tobytes()
        return header + entropy.encode(symbols, groups)

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """Step * symbol."""
        reader = Reader(payload)
        step = reader.floats(1)[0]
        if step == 0:
            reader.end()
            return np.zeros(shape, np.float32)
        symbols = entropy.decode(reader, read_scales(reader, shape).groups())
        values = symbols.astype(np.float32)
        values *= step
        return values.reshape(shape)

    def _search(
        self, values: Floats, groups: list[Group], header_bytes: int, rng: np.random.Generator
    ) -> float:
        """The step that meets `bits` or `error`.

        It depends on draws of its own and not on those that round the tensor afterwards, so rounding
        stays unbiased.
        """
        count = len(values)
        largest = np.abs(values).max()
        budget = self.bits * count - 8 * header_bytes
        allowed = self.error * float(np.mean(np.square(values / largest)))
        if count > _SAMPLE:
            groups = [_drawn(group, -(-len(group) * _SAMPLE // count), rng) for group in groups]
        sample = values[np.concatenate(groups)] / largest
        ends = np.cumsum([len(group) for group in groups])[:-1]

        def is_too_coarse(step: float) -> bool:
            exact = sample / np.float32(step)
            symbols = rounded(exact.copy(), self.rounding, rng)
            if self.bits:
                parts = np.split(symbols.astype(np.int32), ends)
                return entropy.estimated_bits(parts, count / len(sample)) < budget
            return step**2 * float(np.mean(np.square(symbols - exact))) > allowed

        low, high = _FINEST, _COARSEST
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if is_too_coarse(2**middle) else (middle, high)
        return float(largest * np.exp2(low))


def _drawn(group: Group, count: int, rng: np.random.Generator) -> Group:
    return group[rng.integers(len(group), size=count)]
