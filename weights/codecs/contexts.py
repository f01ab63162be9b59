"""Which elements of a tensor are alike in size: what makes the entropy coder's model sharp.

A layer's gradient is a sum of outer products, so a weight's update is about as large as its row's
scale times its column's (dead units are the extreme). Rows and columns therefore travel with their
scale, rounded to an octave, in 4 bits each, and the elements are coded in up to 16 groups, one for
every octave of the product. On the EMNIST CNN's big layer that saves a quarter of the bytes.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weights.codecs.bits import pack_bits, packed_size, unpack_bits
from weights.codecs.codec import Floats, Reader

GROUPS = 16
_LEVEL_BITS = 4
# Below this many elements for every row and column, their scales cost more than they tell.
_ELEMENTS_PER_SCALE = 32

Levels = npt.NDArray[np.uint16]
Group = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Scales:
    """Octaves, 0 to 15, that rows and columns are below the largest row and column.

    Attributes:
        rows: (r,) uint16.
        columns: (c,) uint16.
    """

    rows: Levels
    columns: Levels

    def groups(self) -> list[Group]:
        """Flat indices of the elements whose scale is 0, 1, ... octaves down, at most `GROUPS` arrays.

        Every element is in one of them; the last takes what is further down, empty ones are left out.
        """
        starts = [np.flatnonzero(self.rows == level) * len(self.columns) for level in range(GROUPS)]
        exact = [np.flatnonzero(self.columns == level) for level in range(GROUPS)]
        down = [np.flatnonzero(self.columns >= level) for level in range(GROUPS)]
        groups = []
        for total in range(GROUPS):
            columns = down if total == GROUPS - 1 else exact
            parts = [
                np.add.outer(starts[level], columns[total - level]).reshape(-1)
                for level in range(total + 1)
            ]
            groups.append(np.concatenate(parts))
        return [group for group in groups if len(group)]

    def tobytes(self) -> bytes:
        """Packed; nothing for a tensor that is not taken for a matrix."""
        if len(self.rows) == 1:
            return b""
        return pack_bits(np.concatenate([self.rows, self.columns]), _LEVEL_BITS)


def scales_of(values: Floats, shape: tuple[int, ...]) -> Scales:
    """The scales of a tensor's elements.

    Args:
        values: (n,) float32, finite.
        shape: The tensor's.
    """
    rows, columns = _matrix(shape)
    if rows == 1:
        return Scales(np.zeros(1, np.uint16), np.zeros(columns, np.uint16))
    sizes = np.abs(values).reshape(rows, columns)
    return Scales(_levels(sizes.mean(1, np.float64)), _levels(sizes.mean(0, np.float64)))


def read_scales(reader: Reader, shape: tuple[int, ...]) -> Scales:
    """What `Scales.tobytes` wrote; every bit pattern is valid.

    Raises:
        WireError: The payload is truncated.
    """
    rows, columns = _matrix(shape)
    if rows == 1:
        return Scales(np.zeros(1, np.uint16), np.zeros(columns, np.uint16))
    packed = reader.take("u1", packed_size(rows + columns, _LEVEL_BITS))
    levels = unpack_bits(packed, rows + columns, _LEVEL_BITS)
    return Scales(levels[:rows], levels[rows:])


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows (a layer's outputs, in torch's order) and columns; one row if scales would not pay."""
    count = math.prod(shape)
    rows = shape[0] if shape else 1
    columns = count // rows if rows else 0
    pays = rows > 1 and count >= _ELEMENTS_PER_SCALE * (rows + columns)
    return (rows, columns) if pays else (1, count)


def _levels(sizes: npt.NDArray[np.float64]) -> Levels:
    """Mean magnitudes as octaves below the largest."""
    largest = sizes.max()
    floor = np.maximum(largest * 2.0 ** (1 - GROUPS), np.finfo(np.float64).tiny)
    below = np.log2(np.maximum(largest, floor) / np.maximum(sizes, floor))
    octaves: Levels = np.rint(below).astype(np.uint16)
    return octaves
