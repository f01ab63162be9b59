"""Lossless coding of whole numbers by how often they occur, with `constriction`'s ANS coder.

A number becomes a token and, where it is large, some low bits, as JPEG XL's hybrid integers do
(ISO/IEC 18181-1). Tokens are coded with one frequency table for each group, low bits as they are;
all sit in one stream of asymmetric numeral systems (Duda et al. 2015).
"""

import constriction  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from weights.codecs.codec import Reader
from weights.codecs.contexts import Group
from weights.wire import WireError

Ints = npt.NDArray[np.int32]

# Numbers from -LIMIT to LIMIT can be coded.
LIMIT = 2**28 - 1
# With the sign as their lowest bit, numbers up to 127 are tokens themselves. Beyond that a token
# tells the octave, 2^7 to 2^28, and the 4 bits after the leading one; the bits below follow.
_DIRECT, _FIRST_OCTAVE, _KEPT = 128, 7, 4
_TOKENS = _DIRECT + 22 * 2**_KEPT
# Frequencies that a table's bytes stand for: exact up to 16, then 4 significant bits; any byte is valid.
_FREQUENCIES = np.array([((8 + (byte & 7)) << (byte >> 3)) - 8 for byte in range(256)], np.float64)


def encode(symbols: Ints, groups: list[Group]) -> bytes:
    """Code numbers.

    Args:
        symbols: (n,) int32 from -LIMIT to LIMIT.
        groups: Indices into `symbols`, each in one group; a group's numbers share a frequency table.
    """
    tokens, low_bits, widths = _split(symbols)
    parts = [tokens[group] for group in groups]
    tables = [_table(part) for part in parts]
    coder = constriction.stream.stack.AnsCoder()  # a stack: what is decoded first goes in last
    for width in np.unique(widths)[::-1]:
        coder.encode_reverse(low_bits[widths == width], _evenly(width))
    for part, table in zip(reversed(parts), reversed(tables), strict=True):
        coder.encode_reverse(part, _model(table))
    lengths = np.array([len(table) for table in tables], "<u2").tobytes()
    words = coder.get_compressed().astype("<u4")
    return b"".join(
        [lengths, *tables, np.uint32(len(words)).astype("<u4").tobytes(), words.tobytes()]
    )


def decode(reader: Reader, groups: list[Group]) -> Ints:
    """The (n,) int32 numbers that the rest of a payload holds.

    Args:
        reader: At the start of what `encode` wrote, which must be the payload's end.
        groups: The same as in `encode`.

    Raises:
        WireError: The payload is malformed.
    """
    models = _read_models(reader, len(groups))
    coder = _read_coder(reader)
    tokens = np.empty(sum(map(len, groups)), np.int32)
    for group, model in zip(groups, models, strict=True):
        tokens[group] = coder.decode(model, len(group))
    wide = np.flatnonzero(tokens >= _DIRECT)
    widths = ((tokens[wide] - _DIRECT) >> _KEPT) + (_FIRST_OCTAVE - _KEPT)
    low_bits = np.empty(len(wide), np.int32)
    for width in np.unique(widths):
        chosen = widths == width
        low_bits[chosen] = coder.decode(_evenly(width), int(chosen.sum()))
    if not coder.is_empty():
        raise WireError("the payload holds more than the tensor")
    kept = (tokens[wide] - _DIRECT) & (2**_KEPT - 1)
    tokens[wide] = ((2**_KEPT + kept) << widths) + low_bits
    return (tokens >> 1) ^ -(tokens & 1)


def estimated_bits(parts: list[Ints], times: float) -> float:
    """Bits that `encode` needs for `times` as many numbers, distributed as those of each group in `parts`."""
    bits = 0.0
    for part in parts:
        tokens, _, widths = _split(part)
        counts = np.bincount(tokens, minlength=2)
        occurring = counts[counts > 0]
        numbers = float(occurring @ np.log2(len(part) / occurring)) + float(widths.sum())
        bits += times * numbers + 8 * (2 + len(counts))
    return bits


def _split(symbols: Ints) -> tuple[Ints, Ints, Ints]:
    """Numbers as tokens (n,), and for the m wide ones their low bits and how many those are, (m,)."""
    tokens = (symbols << 1) ^ (symbols >> 31)
    wide = np.flatnonzero(tokens >= _DIRECT)
    numbers = tokens[wide]
    octaves = np.frexp(numbers.astype(np.float64))[1].astype(np.int32) - 1
    widths = octaves - _KEPT
    kept = (numbers >> widths) - 2**_KEPT
    tokens[wide] = _DIRECT + ((octaves - _FIRST_OCTAVE) << _KEPT) + kept
    return tokens, numbers & ((1 << widths) - 1), widths


def _table(tokens: Ints) -> bytes:
    """A byte for every token up to the largest (two at least: `constriction` wants that)."""
    counts = np.bincount(tokens, minlength=2)
    return np.searchsorted(_FREQUENCIES, counts).astype(np.uint8).tobytes()


def _read_models(reader: Reader, count: int) -> list[constriction.stream.model.Categorical]:
    """The models of `count` groups.

    Raises:
        WireError: A table is truncated, of an impossible length, or holds no token.
    """
    lengths = reader.take("<u2", count)
    if not all(2 <= length <= _TOKENS for length in lengths):
        raise WireError("the payload holds a frequency table of an impossible length")
    tables = [reader.take("u1", int(length)).tobytes() for length in lengths]
    if not all(any(table) for table in tables):
        raise WireError("the payload holds an empty frequency table")
    return [_model(table) for table in tables]


def _model(table: bytes) -> constriction.stream.model.Categorical:
    """Whole numbers below 2^36 as frequencies: exact in float64, so both sides build the same model."""
    frequencies = _FREQUENCIES[np.frombuffer(table, np.uint8)]
    return constriction.stream.model.Categorical(frequencies, perfect=False)


def _read_coder(reader: Reader) -> constriction.stream.stack.AnsCoder:
    """The coder over the words that make up the rest of a payload, after how many they are.

    Raises:
        WireError: There are fewer or more, or the last is zero, which ANS never ends in.
    """
    claimed = int(reader.take("<u4", 1)[0])
    words = reader.take("<u4", reader.left // 4).astype(np.uint32)
    reader.end()
    if len(words) != claimed:
        raise WireError(f"the payload holds {len(words)} of {claimed} words")
    if claimed and words[-1] == 0:
        raise WireError("the payload ends in an empty word")
    return constriction.stream.stack.AnsCoder(words)


def _evenly(width: np.int32) -> constriction.stream.model.Uniform:
    return constriction.stream.model.Uniform(1 << int(width))
