"""Damaged and made-up payloads: refused, or decoded to something finite of the right shape."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weights.codecs import entropy
from weights.codecs.catalogue import make_codec
from weights.codecs.codec import Reader
from weights.wire import WireError

SHAPE = (64, 9, 50)
SPECS = [
    "identity",
    "float16",
    "bfloat16",
    "uniform:bits=8",
    "uniform:bits=5",
    "uniform:bits=8,entropy=true",
    "uniform:bits=16,entropy=true",
    "step:bits=2.35",
    "step:bits=0.3",
    "step:bits=10",
    "eden:bits=4",
    "eden:bits=1",
    "topk:fraction=0.02",
]


def payload_of(spec: str, shape: tuple[int, ...] = SHAPE) -> bytes:
    rng = np.random.default_rng(0)
    array = (rng.standard_normal(shape) ** 3).astype(np.float32)
    return make_codec(spec).encode(array, rng)


def accepts(spec: str, payload: bytes, shape: tuple[int, ...] = SHAPE) -> bool:
    """Whether a payload is decoded, to something finite, and not refused."""
    try:
        decoded = make_codec(spec).decode(payload, shape)
    except WireError:
        return False
    assert decoded.shape == shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    return True


def mutated(payload: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, mostly near the start where headers and tables are; cut, or extended."""
    data = bytearray(payload)
    for _ in range(rng.integers(1, 5)):
        end = len(data) if rng.random() < 0.4 else min(len(data), 60)
        data[rng.integers(end)] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
    cut = rng.random()
    if cut < 0.15:
        del data[rng.integers(len(data)) :]
    elif cut < 0.3:
        data += rng.bytes(int(rng.integers(1, 20)))
    return bytes(data)


@pytest.mark.parametrize("spec", SPECS)
def test_mutations(spec: str) -> None:
    payload = payload_of(spec)
    rng = np.random.default_rng(1)
    for _ in range(200):
        accepts(spec, mutated(payload, rng))


@pytest.mark.parametrize("spec", SPECS)
def test_truncated_extended_empty_or_of_another_shape(spec: str) -> None:
    payload = payload_of(spec)
    assert accepts(spec, payload)
    for damaged in (
        b"",
        payload[:1],
        payload[:-1],
        payload[:-4],
        payload + b"\0",
        payload + b"1234",
    ):
        assert not accepts(spec, damaged)
    for shape in ((64, 9, 51), (63, 9, 50), (), (0,), (10_000_000,)):
        assert not accepts(spec, payload, shape)


@given(st.sampled_from(SPECS), st.binary(max_size=300), st.sampled_from([(), (0,), (7, 3), SHAPE]))
@settings(max_examples=300, deadline=None)
def test_made_up_payloads(spec: str, payload: bytes, shape: tuple[int, ...]) -> None:
    accepts(spec, payload, shape)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800000, 0xFF800000, 0x7F7FFFFF])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("float16")])
def test_absurd_scales(spec: str, bits: int) -> None:
    scale = np.array([bits], "<u4").tobytes()
    start = 8 if spec.startswith("eden") else 0
    if spec == "bfloat16":
        scale = scale[2:]
    payload = payload_of(spec)
    assert not accepts(spec, payload[:start] + scale + payload[start + len(scale) :])


def test_minimum_above_maximum() -> None:
    ends = np.array([1, -1], "<f4").tobytes()
    assert not accepts("uniform", ends + payload_of("uniform")[8:])


def test_largest_scales_stay_finite() -> None:
    scale = np.array([2.0**100], "<f4").tobytes()
    for spec, start in (("step:bits=10", 0), ("eden:bits=1", 8), ("topk:fraction=0.02", 0)):
        payload = payload_of(spec)
        assert accepts(spec, payload[:start] + scale + payload[start + 4 :])


@pytest.mark.parametrize("spec", SPECS)
def test_memory_is_bounded_by_the_shape(spec: str) -> None:
    rng = np.random.default_rng(1)
    payload = payload_of(spec)
    for damaged in (payload, *(mutated(payload, rng) for _ in range(5))):
        tracemalloc.start()
        accepts(spec, damaged)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60 * np.prod(SHAPE) + 2 * len(damaged) + 2e6


def symbols() -> st.SearchStrategy[npt.NDArray[np.int32]]:
    magnitude = st.one_of(st.integers(-3, 3), st.integers(-(2**28) + 1, 2**28 - 1))
    return st.lists(magnitude, min_size=1, max_size=200).map(lambda n: np.array(n, np.int32))


@given(symbols(), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_entropy_coder_is_lossless(numbers: npt.NDArray[np.int32], seed: int) -> None:
    groups = np.random.default_rng(seed).integers(3, size=len(numbers))
    indices = [np.flatnonzero(groups == group) for group in range(3) if (groups == group).any()]
    payload = entropy.encode(numbers, indices)
    np.testing.assert_array_equal(entropy.decode(Reader(payload), indices), numbers)


def test_entropy_coder_reaches_the_entropy() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.3, 1.0, 5.0, 60.0, 3000.0):
        numbers = np.rint(scale * rng.standard_normal(200_000)).astype(np.int32)
        counts = np.unique(numbers, return_counts=True)[1]
        bits = counts @ np.log2(len(numbers) / counts)
        assert 8 * len(entropy.encode(numbers, [np.arange(len(numbers))])) < 1.005 * bits + 8000
