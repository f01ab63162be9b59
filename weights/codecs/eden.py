"""EDEN: quantisation after a random rotation (Vargaftik et al. 2022, arXiv:2108.08842)."""

import functools
import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from weights.codecs.bits import pack_bits, packed_size, unpack_bits
from weights.codecs.codec import SMALLEST, Codec, Floats, Reader, check_threshold, flat
from weights.codecs.hadamard import transform
from weights.codecs.lloyd import lloyd_max

# A tensor is rotated in blocks of 2^15, and what remains in smaller ones. It is filled up with zeros to
# a multiple of the smallest, which adds under 1% to a tensor of 20,000 elements.
_LARGEST_BLOCK, _SMALLEST_BLOCK = 2**15, 2**7
# One round leaves a block with few large elements far from normal, and EDEN biased on it: 13% for a spike
# of 10 among 127 normal elements at 1 bit. Two do not.
_ROTATIONS = 2
# Levels are looked up on a grid of cells from -8 to 8. Within half a cell (0.0002) of the middle of two
# levels a value may get the other one, where it makes no difference to the error.
_REACH, _CELLS = 8.0, 2**15


class Eden(Codec):
    """Rotates so that elements are about normal, and rounds them to the levels best for a normal.

    The rotation is a random sign for each element and a Walsh-Hadamard transform, twice, in blocks;
    every block has a scale that makes the result unbiased. One bit is DRIVE (Vargaftik et al. 2021).

    Args:
        bits: Per element, 1 to 8.
        threshold: See `Codec`.
    """

    name: ClassVar[str] = "eden"
    unbiased = True

    def __init__(self, bits: int = 4, threshold: int = Codec.threshold) -> None:
        if not 1 <= bits <= 8:
            raise ValueError(f"bits must be from 1 to 8, not {bits}")
        self.bits = bits
        self.threshold = check_threshold(threshold)

    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """The signs' seed, a float32 scale for each block, then `bits` an element."""
        values = flat(array)
        seed = rng.integers(2**64, size=1, dtype="<u8")
        unit = np.abs(values).max(initial=np.float32(SMALLEST))
        rotated = np.zeros(_padded(len(values)), np.float32)
        np.divide(values, unit, out=rotated[: len(values)])
        blocks = _blocks(rotated)
        for signs in _signs(seed, len(rotated)):
            _flip(rotated, signs)
            _transform(blocks)
        coded = [self._quantise(rows) for rows in blocks]
        scales = [(scales * unit).astype("<f4").tobytes() for scales, _ in coded]
        symbols = np.concatenate([np.empty(0, np.uint8), *(symbols for _, symbols in coded)])
        return b"".join([seed.tobytes(), *scales, pack_bits(symbols, self.bits)])

    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """Levels by symbol, scaled and rotated back."""
        count = math.prod(shape)
        padded = _padded(count)
        reader = Reader(payload)
        seed = reader.take("<u8", 1)
        scales = reader.floats(sum(map(len, _blocks(np.empty(padded, np.float32)))))
        packed = reader.take("u1", packed_size(padded, self.bits))
        reader.end()
        values = lloyd_max(self.bits)[unpack_bits(packed, padded, self.bits)]
        blocks = _blocks(values)
        for rows in blocks:
            rows *= scales[: len(rows), None]
            scales = scales[len(rows) :]
        for signs in _signs(seed, padded)[::-1]:
            _transform(blocks)
            _flip(values, signs)
        return values[:count].reshape(shape)

    def _quantise(self, rows: Floats) -> tuple[Floats, npt.NDArray[np.uint8]]:
        """Scales (m,) and symbols (m * d,) of rotated blocks (m, d), which are overwritten.

        The scale is ||x||^2 / <R(x), Q>, Q being the levels of the rotated block brought to unit
        variance (EDEN, section 3): <decoded, x> = ||x||^2 whatever the rotation drawn.
        """
        length = np.float32(rows.shape[1])
        deviation = np.sqrt(np.vecdot(rows, rows) / length)
        is_zero = deviation == 0
        rows /= np.where(is_zero, 1, deviation)[:, None].astype(np.float32)
        symbols = _grid(self.bits)[_cells(rows)]
        product = np.vecdot(rows, lloyd_max(self.bits)[symbols])
        scales = deviation * length / np.where(is_zero, 1, product)
        return scales.astype(np.float32), symbols.reshape(-1)


@functools.cache
def _grid(bits: int) -> npt.NDArray[np.uint8]:
    """(_CELLS,): the symbol of the level nearest to a cell's middle."""
    levels = lloyd_max(bits)
    middles = (np.arange(_CELLS) + 0.5) * (2 * _REACH / _CELLS) - _REACH
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, middles).astype(np.uint8)


def _cells(rotated: Floats) -> npt.NDArray[np.intp]:
    """The grid cell of every value; what is out of reach falls into the outermost."""
    position = rotated * np.float32(_CELLS / (2 * _REACH))
    position += np.float32(_CELLS / 2)
    return np.clip(position, 0, _CELLS - 1, out=position).astype(np.intp)


def _padded(count: int) -> int:
    return -(-count // _SMALLEST_BLOCK) * _SMALLEST_BLOCK


def _blocks(values: Floats) -> list[Floats]:
    """Views (m, 2^k) that make up `values`: as many of the largest block as fit, then smaller ones."""
    views, length = [], _LARGEST_BLOCK
    while length >= _SMALLEST_BLOCK:
        count = len(values) // length
        if count:
            views.append(values[: count * length].reshape(count, length))
        values = values[count * length :]
        length //= 2
    return views


def _transform(blocks: list[Floats]) -> None:
    for rows in blocks:
        rows[:] = transform(rows)


def _signs(seed: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint32]:
    """(_ROTATIONS, count) sign bits drawn by NumPy's PCG64, whose stream is fixed; count a multiple of 64."""
    words = np.random.PCG64(int(seed[0])).random_raw(_ROTATIONS * count // 64)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8)).reshape(_ROTATIONS, count)
    return bits.astype(np.uint32) << np.uint32(31)


def _flip(values: Floats, signs: npt.NDArray[np.uint32]) -> None:
    """Change the sign of (n,) in place where a sign bit is set."""
    bits = values.view(np.uint32)
    bits ^= signs
