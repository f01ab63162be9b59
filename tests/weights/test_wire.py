"""Arrays over the wire, and what is refused."""

import io
import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from weights.wire import (
    NUMPY_STYPE,
    WireError,
    claimed,
    pack,
    payload_bytes,
    records,
    unpack,
)

GRID = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "array",
    [
        GRID,
        np.asfortranarray(GRID),
        GRID.T,
        GRID[:, ::2],
        np.array(2.5, np.float32),
        np.array(7, np.int64),
        np.arange(5, dtype=np.int64),
        np.zeros((0, 3), np.float32),
        np.array([True, False]),
        np.array([1.5, np.nan, np.inf], np.float64),
        np.arange(4, dtype=np.float16),
    ],
)
def test_round_trip(array: npt.NDArray[Any]) -> None:
    record = pack({"w": array})
    unpacked = unpack(record, like={"w": np.empty_like(array)})["w"]
    assert unpacked.dtype == array.dtype
    assert unpacked.shape == array.shape
    np.testing.assert_array_equal(unpacked, array)
    torch.testing.assert_close(
        torch.from_numpy(unpacked), torch.from_numpy(array.copy()), equal_nan=True
    )
    # Flower reads our records, and we read Flower's.
    np.testing.assert_array_equal(record["w"].numpy(), array)
    theirs = ArrayRecord({"w": Array(array)})
    np.testing.assert_array_equal(unpack(theirs, like={"w": array})["w"], array)


def test_names_and_their_order_come_from_what_is_expected() -> None:
    record = pack({"b": GRID, "a": GRID[0]})
    assert list(unpack(record, like={"a": GRID[0], "b": GRID})) == ["a", "b"]
    assert unpack(pack({}), like={}) == {}


def test_nothing_is_copied_or_writable() -> None:
    record = pack({"w": GRID})
    unpacked = unpack(record, like={"w": GRID})["w"]
    assert np.shares_memory(unpacked, np.frombuffer(record["w"].data, np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        unpacked[0] = 1
    assert payload_bytes(record) == len(record["w"].data) > GRID.nbytes


def test_the_senders_later_changes_stay_with_the_sender() -> None:
    array = GRID.copy()
    record = pack({"w": array})
    array[:] = -1
    np.testing.assert_array_equal(unpack(record, like={"w": GRID})["w"], GRID)


def refused(data: bytes, stype: str = NUMPY_STYPE) -> str:
    record = ArrayRecord({"layer.w": Array("float32", (2, 3), stype, data)})
    with pytest.raises(WireError) as error:
        unpack(record, like={"layer.w": GRID})
    return str(error.value)


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    line = header.encode("latin1")
    return b"\x93NUMPY" + version + len(line).to_bytes(2, "little") + line + data


GOOD = pack({"w": GRID})["w"].data


def test_wrong_length() -> None:
    assert refused(GOOD[:-1]) == "layer.w has 23 bytes of data, not 24"
    assert refused(GOOD + b"\0") == "layer.w has 25 bytes of data, not 24"
    for length in range(len(GOOD) - 24):
        assert refused(GOOD[:length]).startswith("layer.w ")


def test_wrong_kind() -> None:
    assert refused(GOOD, "fedferry.uniform8") == (
        "layer.w is encoded as 'fedferry.uniform8' and was not decoded"
    )
    double = pack({"w": GRID.astype(np.float64)})["w"].data
    assert refused(double) == "layer.w is float64[2, 3], not float32[2, 3]"
    turned = pack({"w": GRID.T})["w"].data
    assert refused(turned) == "layer.w is float32[3, 2], not float32[2, 3]"
    assert "not float32" in refused(
        npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}")
    )


def test_a_huge_claim_is_refused_before_memory_is_taken() -> None:
    huge = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4096)}")
    assert "float32[1099511627776, 4096], not float32[2, 3]" in refused(huge)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not an array",
        b"\x80\x04pickled",
        npy(""),
        npy("{'descr': '<f4'"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3}"),
        npy("__import__('os').system('true')"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': 6}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
        npy("{'descr': '<f4', 'fortran_order': False}"),
        npy("{'descr': ('<f4',), 'fortran_order': False, 'shape': (2, 3)}"),
        npy("{'descr': [1, 2], 'fortran_order': False, 'shape': (2, 3)}"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", bytes(24)),
        npy("{'descr': 'no such', 'fortran_order': False, 'shape': (2, 3)}"),
        npy("-" * 9000 + "1"),
        npy("[" * 9000),
        npy("("),
        npy("'''"),
        npy("\\"),
        npy("{[1]: 2}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", bytes(24), b"\x02\x00"),
    ],
)
def test_damage(data: bytes) -> None:
    assert refused(data).startswith("layer.w ")


def test_random_damage_to_the_header_is_refused_or_harmless() -> None:
    rng = random.Random(0)
    record_of = {"w": GRID}
    for _ in range(3000):
        data = bytearray(GOOD)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(GOOD) - 24)] = rng.randrange(256)
        record = ArrayRecord({"w": Array("float32", (2, 3), NUMPY_STYPE, bytes(data))})
        try:
            unpacked = unpack(record, like=record_of)["w"]
        except WireError:
            continue
        assert (unpacked.shape, unpacked.dtype) == (GRID.shape, GRID.dtype)


def test_names_are_checked() -> None:
    record = pack({"a": GRID, "b": GRID})
    with pytest.raises(WireError, match=r"missing or unknown: b$"):
        unpack(record, like={"a": GRID})
    with pytest.raises(WireError, match=r"missing or unknown: c$"):
        unpack(record, like={"a": GRID, "b": GRID, "c": GRID})


def test_what_a_record_claims_takes_no_memory() -> None:
    huge = Array("float32", (2**40, 2**20), NUMPY_STYPE, b"")
    claim = claimed(ArrayRecord({"w": huge, "b": Array(GRID.astype(np.int64))}))
    assert {name: (like.shape, str(like.dtype)) for name, like in claim.items()} == {
        "w": ((2**40, 2**20), "float32"),
        "b": ((2, 3), "int64"),
    }
    assert not any(any(like.strides) for like in claim.values())


def test_records_of_a_kind() -> None:
    arrays, config, metrics = pack({"w": GRID}), ConfigRecord({"a": 1}), MetricRecord({"b": 2})
    content = RecordDict({"x": config, "y": arrays, "z": metrics, "u": ConfigRecord()})
    assert records(content, ArrayRecord) == {"y": arrays}
    assert records(content, ConfigRecord) == {"x": config, "u": ConfigRecord()}
    assert records(content, MetricRecord) == {"z": metrics}


def test_the_payload_is_that_of_all_arrays() -> None:
    # npy's header is 128 bytes.
    assert payload_bytes(pack({"w": GRID, "b": GRID[0]})) == 128 + 24 + 128 + 12


def test_another_header_of_the_same_array() -> None:
    """Not padded as numpy does it."""
    data = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", GRID.tobytes())
    record = ArrayRecord({"w": Array("float32", (2, 3), NUMPY_STYPE, data)})
    np.testing.assert_array_equal(unpack(record, like={"w": GRID})["w"], GRID)


def test_fortran_order_from_elsewhere() -> None:
    stream = io.BytesIO()
    np.save(stream, np.asfortranarray(GRID))
    record = ArrayRecord({"w": Array("float32", (2, 3), NUMPY_STYPE, stream.getvalue())})
    np.testing.assert_array_equal(unpack(record, like={"w": GRID})["w"], GRID)
