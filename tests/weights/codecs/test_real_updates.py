"""Bytes and errors of a real client's update of the EMNIST CNN."""

import numpy as np
import pytest

from weights.codecs.catalogue import decode_arrays, encode_arrays, make_codec
from weights.named import NamedArrays
from weights.wire import payload_bytes

BIG = "dense.weight"


def sent_and_received(spec: str, update: NamedArrays) -> tuple[int, NamedArrays]:
    """Bytes of the whole payload, and what comes out of it."""
    codecs = dict.fromkeys(update, make_codec(spec))
    record = encode_arrays(codecs, update, np.random.default_rng(0))
    return payload_bytes(record), decode_arrays(record, codecs, update)


def error(spec: str, update: NamedArrays) -> tuple[int, float]:
    """Bytes, and the big layer's normalised error."""
    size, received = sent_and_received(spec, update)
    return size, float(np.sum((received[BIG] - update[BIG]) ** 2.0) / np.sum(update[BIG] ** 2.0))


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        ("identity", 6_656_000),
        ("uniform:bits=8", 1_690_000),
        ("uniform:bits=8,entropy=true", 900_000),
        ("eden:bits=4", 860_000),
        ("eden:bits=2", 446_000),
        ("eden:bits=1", 240_000),
        ("step:bits=2.35", 520_000),
        ("step:bits=1.06", 250_000),
        ("step:bits=0.5", 135_000),
        ("step:bits=0.5,rounding=nearest", 135_000),
    ],
)
def test_bytes(real_update: NamedArrays, spec: str, most: int) -> None:
    assert sent_and_received(spec, real_update)[0] <= most


def test_entropy_coding_loses_nothing(real_update: NamedArrays) -> None:
    plain = sent_and_received("uniform:bits=8", real_update)[1]
    coded = sent_and_received("uniform:bits=8,entropy=true", real_update)[1]
    for name in real_update:
        np.testing.assert_array_equal(plain[name], coded[name])


@pytest.mark.parametrize(
    ("rival", "bits"), [("eden:bits=4", 4.0), ("eden:bits=2", 2.0), ("eden:bits=1", 1.0)]
)
def test_step_beats_a_rotation_at_equal_bytes(
    real_update: NamedArrays, rival: str, bits: float
) -> None:
    rival_size, rival_error = error(rival, real_update)
    size, ours = error(f"step:bits={bits}", real_update)
    assert size < 1.01 * rival_size
    assert ours < 0.7 * rival_error
