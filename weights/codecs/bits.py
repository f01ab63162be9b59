"""Tight packing of unsigned integers of 1 to 16 bits."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def packed_size(count: int, width: int) -> int:
    """Bytes of `count` packed integers."""
    return -(-count * width // 8)


def pack_bits(values: npt.NDArray[np.uint8 | np.uint16], width: int) -> bytes:
    """Pack integers into a little-endian bit stream.

    Args:
        values: (n,) uint8 or uint16, each below 2^width.
        width: Bits of each, 1 to 16.

    Returns:
        `packed_size(n, width)` bytes; the last one is filled up with zero bits.
    """
    groups = -(-len(values) // 8)
    symbols = np.zeros((groups, 8), np.uint16)
    symbols.reshape(-1)[: len(values)] = values
    packed = np.zeros((groups, width), np.uint8)
    for symbol, byte, shift in _overlaps(width):
        column = symbols[:, symbol]
        shifted = column << np.uint16(shift) if shift > 0 else column >> np.uint16(-shift)
        packed[:, byte] |= shifted.astype(np.uint8)
    return packed.tobytes()[: packed_size(len(values), width)]


def unpack_bits(packed: npt.NDArray[np.uint8], count: int, width: int) -> npt.NDArray[np.uint16]:
    """The `count` integers, (count,) uint16, of `packed_size(count, width)` bytes."""
    groups = -(-count // 8)
    padded = np.zeros((groups, width), np.uint8)
    padded.reshape(-1)[: len(packed)] = packed
    symbols = np.zeros((groups, 8), np.uint16)
    for symbol, byte, shift in _overlaps(width):
        column = padded[:, byte].astype(np.uint16)
        symbols[:, symbol] |= (
            column >> np.uint16(shift) if shift > 0 else column << np.uint16(-shift)
        )
    symbols &= np.uint16((1 << width) - 1)
    return symbols.reshape(-1)[:count]


def _overlaps(width: int) -> Iterator[tuple[int, int, int]]:
    """(symbol, byte, shift) wherever a symbol's bits fall into a byte: 8 symbols fill `width` bytes."""
    for symbol in range(8):
        first = symbol * width
        for byte in range(first // 8, (first + width - 1) // 8 + 1):
            yield symbol, byte, first - 8 * byte
