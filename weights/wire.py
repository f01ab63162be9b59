"""The wire format: named arrays in Flower's records, without trust in what the other side claims."""

import functools
import io
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from settings.errors import counted
from weights.named import Array, NamedArrays

# Unpacked arrays are read-only views of a message's bytes, and torch only ever reads them. It warns
# of the first such array in a process: here, where nobody hears it, whatever filters come later.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"0", np.uint8))

Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)

Content = TypeVar("Content", bound=ArrayRecord | MetricRecord | ConfigRecord | RecordDict)

NUMPY_STYPE = "numpy.ndarray"

COMPRESSION = "compression"
"""The config record that says what a client is to do with its update; in the reply, what it did."""
AGAIN = "again"
"""The config record of a message that was sent before: its value `of` is the first one's id."""


class WireError(ValueError):
    """A record that does not hold the arrays it should: says which array and why."""


def pack(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Named arrays as a record of Flower's own kind (`stype` numpy.ndarray), one copy of the data."""
    return put(ArrayRecord(), {name: _pack_array(array) for name, array in arrays.items()})


def unpack(record: ArrayRecord, like: Mapping[str, Array]) -> NamedArrays:
    """Named arrays from a record: read-only views of the record's bytes, nothing is copied.

    Args:
        record: What came over the wire.
        like: The arrays that are expected; names, shapes and dtypes must agree.

    Raises:
        WireError: Anything that differs from `like`, undecoded `stype`s and truncated data included.
    """
    arrays = dict(record.items())
    if odd := arrays.keys() ^ like.keys():
        raise WireError(f"arrays missing or unknown: {', '.join(sorted(odd)[:3])}")
    return {name: _unpack_array(name, arrays[name], expected) for name, expected in like.items()}


def claimed(record: ArrayRecord) -> NamedArrays:
    """Stand-ins of the shapes and dtypes that a record claims, without memory behind them.

    For `like`, where the record comes from this very process or from the own server.
    """
    return {
        name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
        for name, array in record.items()
    }


def records(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """A message's records of one kind, by name.

    `content.array_records` and its likes give the same, but refer to themselves: the arrays would stay in
    memory, message after message, until the garbage collector comes by.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def put(record: Content, values: Mapping[str, Any]) -> Content:
    """Put values into a record, or records into a content, and return it.

    Past Flower's checks, which take 4 us a value: for what this code has made, or has from where it was checked.
    """
    record.__dict__["_data"].update(values)
    return record


def payload_bytes(record: ArrayRecord) -> int:
    """Bytes of all arrays' data, as they go over the wire."""
    return sum([len(array.data) for array in record.values()])


def _pack_array(array: Array) -> FlowerArray:
    contiguous = np.ascontiguousarray(array).reshape(array.shape)
    data = b"".join((_header(array.shape, array.dtype), contiguous.data))
    return FlowerArray(_name(array.dtype), array.shape, NUMPY_STYPE, data)


_name = functools.lru_cache(str)  # of a dtype: numpy looks it up anew each time (3 us)


@functools.lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The npy header of a C-contiguous array."""
    stream = io.BytesIO()
    like = np.broadcast_to(np.zeros((), dtype), shape)
    said = np.lib.format.header_data_from_array_1_0(like) | {"fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, said)
    return stream.getvalue()


def _unpack_array(name: str, array: FlowerArray, expected: Array) -> Array:
    if array.stype != NUMPY_STYPE:
        raise WireError(f"{name} is encoded as {array.stype!r} and was not decoded")
    usual = _header(expected.shape, expected.dtype)
    if len(array.data) - len(usual) == expected.nbytes and array.data.startswith(usual):
        return np.ndarray(expected.shape, expected.dtype, array.data, len(usual))
    # Somebody else's header. Only it is read before shape and dtype are checked: np.load would allocate
    # what it claims.
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy evaluates the header as Python: anything can come of it
        raise WireError(f"{name} is not an array: {error!r}") from None
    if shape != expected.shape or dtype != expected.dtype:
        raise WireError(
            f"{name} is {dtype}{list(shape)}, not {expected.dtype}{list(expected.shape)}"
        )
    if len(array.data) - stream.tell() != expected.nbytes:
        size = counted(len(array.data) - stream.tell(), "byte")
        raise WireError(f"{name} has {size} of data, not {expected.nbytes}")
    flat = np.frombuffer(array.data, dtype, offset=stream.tell())
    return flat.reshape(shape, order="F" if fortran else "C")
