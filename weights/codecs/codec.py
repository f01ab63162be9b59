"""What a codec is, and what every codec of ours checks."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from settings.errors import counted
from weights.named import max_abs
from weights.wire import WireError

Floats = npt.NDArray[np.float32]

# No value beyond this is encoded: it is far from any update that is not diverging. Scales that are read
# may be somewhat larger, and stay far enough below float32's 2^128 that no symbol makes them overflow.
LARGEST = 2.0**90
LARGEST_SCALE = 2.0**100
# Spreads below this count as zero: their reciprocals would overflow.
SMALLEST = 2.0**-100


class NotEncodable(ValueError):
    """A tensor that no codec takes: it holds a NaN, an infinity or a value beyond `LARGEST`."""


class Codec(ABC):
    """How one tensor becomes bytes and comes back.

    Stateless and cheap to construct: what a client remembers from round to round (error feedback)
    is kept by the client, outside of the codec.

    Attributes:
        name: Its name in `stype`, see there.
        version: Of the payload's format.
        unbiased: Whether the mean of decode(encode(x)) over `rng` is x.
        threshold: Tensors with more elements than this are encoded, others travel as they are.
        feedback: Whether the client adds what encoding lost to its next update (error feedback).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    unbiased: bool
    threshold: int = 20_000
    feedback: bool = False

    @abstractmethod
    def encode(self, array: Floats, rng: np.random.Generator) -> bytes:
        """The payload of an array of any shape, drawing from `rng` where the codec is randomised.

        Raises:
            NotEncodable: See there.
        """

    @abstractmethod
    def decode(self, payload: bytes, shape: tuple[int, ...]) -> Floats:
        """The array of exactly `shape` that a payload holds: writable and finite.

        Nothing in a payload may be trusted, and nothing allocated from a size that it claims.

        Raises:
            WireError: The payload is not one that `encode` makes for this shape.
        """


def stype(codec: Codec) -> str:
    """What marks an array as encoded on the wire, so that it fails loudly where it is not decoded."""
    return f"fedferry.{codec.name}.v{codec.version}"


def flat(array: Floats) -> Floats:
    """The array as (n,), contiguous.

    Raises:
        NotEncodable: See there.
    """
    if not max_abs(array) <= LARGEST:
        raise NotEncodable(f"a tensor with a value that is not finite or beyond {LARGEST:.0e}")
    return np.ascontiguousarray(array).reshape(-1)


def check_threshold(threshold: int) -> int:
    """`threshold` itself, or ValueError if it is negative."""
    if threshold < 0:
        raise ValueError(f"threshold must not be negative: {threshold}")
    return threshold


def bounded(values: Floats) -> Floats:
    """`values` themselves, or WireError if one is a NaN or beyond `LARGEST_SCALE` in magnitude."""
    if not bool(np.all(np.abs(values) <= LARGEST_SCALE)):
        raise WireError("the payload holds a NaN, infinite or absurd value")
    return values


class Reader:
    """Takes a payload apart from its start.

    Args:
        payload: What came over the wire.

    Raises:
        WireError: By each method, for what is missing, surplus or absurd.
    """

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._position = 0

    def take(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """The next `count` items: a read-only view. `dtype` says the byte order, as `<f4` does."""
        size = count * np.dtype(dtype).itemsize
        if self.left < size:
            raise WireError(f"the payload is truncated: {self.left} of {size} bytes")
        taken = np.frombuffer(self._payload, dtype, count, self._position)
        self._position += size
        return taken

    def floats(self, count: int) -> Floats:
        """The next `count` float32, all finite and at most `LARGEST_SCALE` in magnitude."""
        return bounded(self.take("<f4", count).astype(np.float32))

    @property
    def left(self) -> int:
        """Bytes not taken yet."""
        return len(self._payload) - self._position

    def end(self) -> None:
        """Check that nothing is left."""
        if self.left:
            raise WireError(f"the payload is {counted(self.left, 'byte')} too long")
