"""The Walsh-Hadamard transform."""

import functools

import numpy as np

from weights.codecs.codec import Floats

# Axes of 2^5 at most are transformed by one product each. Products are cut to 128 columns: they stay in
# the cache, and BLAS splits none among threads, which is ruinous where other processes want the cores.
_FACTOR, _COLUMNS = 5, 128


def transform(rows: Floats) -> Floats:
    """Orthonormal Walsh-Hadamard transform of every row; it is its own inverse.

    The matrix of 2^(a+b) is the Kronecker product of those of 2^a and 2^b, so a row of 2^15 is
    transformed as a 32 x 32 x 32 cube, an axis at a time: n log n operations.

    Args:
        rows: (m, 2^k) float32, contiguous.
    """
    shape = rows.shape
    remaining, right = shape[1].bit_length() - 1, 1
    while remaining:
        matrix = _matrix(min(remaining, _FACTOR))
        result = np.empty_like(rows)
        if right == 1:
            cube = (-1, min(_COLUMNS, shape[1] // len(matrix)), len(matrix))
            np.matmul(rows.reshape(cube), matrix, out=result.reshape(cube))
        else:
            columns = min(_COLUMNS, right)
            cut = (-1, len(matrix), right // columns, columns)
            source, target = rows.reshape(cut), result.reshape(cut)
            np.matmul(matrix, source.swapaxes(1, 2), out=target.swapaxes(1, 2))
        rows = result
        right *= len(matrix)
        remaining = max(remaining - _FACTOR, 0)
    return rows


@functools.cache
def _matrix(exponent: int) -> Floats:
    """Sylvester's orthonormal, symmetric Hadamard matrix of 2^exponent."""
    matrix = np.ones((1, 1), np.float32)
    for _ in range(exponent):
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32) / np.sqrt(np.float32(2)), matrix)
    return matrix
