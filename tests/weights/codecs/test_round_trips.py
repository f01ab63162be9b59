"""Every codec over shapes, values and options: what comes back, and how far off it may be."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weights.codecs.bits import pack_bits, packed_size, unpack_bits
from weights.codecs.catalogue import make_codec
from weights.codecs.codec import NotEncodable

Floats = npt.NDArray[np.float32]

SPECS = st.one_of(
    st.sampled_from(["identity", "float16", "bfloat16"]),
    st.builds(
        "uniform:bits={},rounding={},entropy={}".format,
        st.integers(1, 16),
        st.sampled_from(["stochastic", "nearest"]),
        st.booleans(),
    ),
    st.builds(
        "step:{}={},rounding={}".format,
        st.sampled_from(["bits", "error", "step"]),
        st.floats(0.01, 16),
        st.sampled_from(["stochastic", "nearest"]),
    ),
    st.builds("eden:bits={}".format, st.integers(1, 8)),
    st.builds("topk:fraction={}".format, st.floats(0.001, 1)),
)
SHAPES = st.one_of(
    st.sampled_from([(), (0,), (1,), (3, 0), (70, 2, 5, 7), (100, 80), (1, 300), (33000,)]),
    st.lists(st.integers(1, 12), max_size=4).map(tuple),
)


@st.composite
def tensors(draw: st.DrawFn) -> Floats:
    """Of every scale a float32 update may have: heavy tails, zeros, constants, rows of their own scale."""
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.standard_normal(shape)
    kind = draw(st.sampled_from(["normal", "heavy", "sparse", "constant", "zero", "offset"]))
    if kind == "heavy":
        values = values**5
    elif kind == "sparse":
        values = values * (rng.uniform(size=shape) < 0.1)
    elif kind in ("constant", "zero"):
        values = np.full(shape, float(kind == "constant"))
    elif kind == "offset":
        values = values * 1e-3 + 7
    return np.asarray(values * 10.0 ** draw(st.integers(-44, 23)), np.float32).reshape(shape)


@given(SPECS, tensors(), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_round_trip(spec: str, array: Floats, seed: int) -> None:
    codec = make_codec(spec)
    payload = codec.encode(array, np.random.default_rng(seed))
    assert payload == codec.encode(array, np.random.default_rng(seed))
    decoded = codec.decode(payload, array.shape)
    assert decoded.shape == array.shape
    assert decoded.dtype == np.float32
    assert decoded.flags.writeable
    assert np.isfinite(decoded).all()
    assert not array.any() or array.size < 100 or np.abs(decoded).max() < 1e4 * np.abs(array).max()


@given(tensors())
@settings(max_examples=50, deadline=None)
def test_identity_is_exact(array: Floats) -> None:
    codec = make_codec("identity")
    payload = codec.encode(array, np.random.default_rng(0))
    assert len(payload) == array.nbytes
    assert codec.decode(payload, array.shape).tobytes() == array.tobytes()


@given(st.integers(1, 16), st.integers(0, 200), st.integers(0, 2**32 - 1))
def test_packing_is_tight_and_exact(width: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(2**width, size=count).astype(np.uint16)
    packed = pack_bits(values, width)
    assert len(packed) == packed_size(count, width) == math.ceil(count * width / 8)
    number = sum(int(value) << (width * index) for index, value in enumerate(values))
    assert packed == number.to_bytes(len(packed), "little")
    np.testing.assert_array_equal(
        unpack_bits(np.frombuffer(packed, np.uint8), count, width), values
    )


def both_ways(spec: str, array: Floats, seed: int = 0) -> tuple[int, Floats]:
    codec = make_codec(spec)
    payload = codec.encode(array, np.random.default_rng(seed))
    return len(payload), codec.decode(payload, array.shape)


def nmse(decoded: Floats, array: Floats) -> float:
    return float(np.sum((decoded - array) ** 2.0) / np.sum(array**2.0))


@pytest.fixture(scope="module")
def layer() -> Floats:
    """(256, 1000): a normal times a scale for each row and column, as a gradient is."""
    rng = np.random.default_rng(3)
    scales = np.exp(rng.standard_normal((256, 1))) * np.exp(rng.standard_normal(1000))
    return (1e-3 * scales * rng.standard_normal((256, 1000))).astype(np.float32)


@pytest.mark.parametrize("bits", range(1, 17))
def test_uniform_is_off_by_an_interval_at_most(layer: Floats, bits: int) -> None:
    interval = np.ptp(layer) / (2**bits - 1)
    for rounding, bound in (("stochastic", 1.0), ("nearest", 0.5)):
        size, decoded = both_ways(f"uniform:bits={bits},rounding={rounding}", layer)
        assert size == math.ceil(layer.size * bits / 8) + 8
        assert np.abs(decoded - layer).max() <= bound * interval * 1.01


@pytest.mark.parametrize("bits", [1, 5, 8, 16])
def test_entropy_coding_loses_nothing(layer: Floats, bits: int) -> None:
    size, decoded = both_ways(f"uniform:bits={bits}", layer)
    coded_size, coded = both_ways(f"uniform:bits={bits},entropy=true", layer)
    np.testing.assert_array_equal(decoded, coded)
    assert coded_size < size


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_step_meets_its_target(layer: Floats, rounding: str) -> None:
    for bits in (0.2, 0.5, 1.06, 2.35, 5.0):
        size, _ = both_ways(f"step:bits={bits},rounding={rounding}", layer)
        assert abs(8 * size / layer.size / bits - 1) < 0.02
    for error in (0.001, 0.03, 0.3):
        _, decoded = both_ways(f"step:error={error},rounding={rounding}", layer)
        assert abs(nmse(decoded, layer) / error - 1) < 0.05
    _, decoded = both_ways(f"step:step=0.001,rounding={rounding}", layer)
    np.testing.assert_array_equal(decoded, np.rint(decoded / 0.001) * np.float32(0.001))
    assert np.abs(decoded - layer).max() <= (0.00101 if rounding == "stochastic" else 0.000501)


def test_scales_of_rows_and_columns_save_bytes(layer: Floats) -> None:
    size, _ = both_ways("step:step=0.0005", layer)
    shuffled = np.random.default_rng(0).permuted(layer)
    assert size < 0.85 * both_ways("step:step=0.0005", shuffled)[0]


def test_halves(layer: Floats) -> None:
    for spec, precision in (("float16", 2.0**-11), ("bfloat16", 2.0**-8)):
        size, decoded = both_ways(spec, layer + 1)
        assert size == 2 * layer.size
        assert np.abs(decoded / (layer + 1) - 1).max() <= precision
    huge = np.array([1e6, -1e6, 1e-9], np.float32)
    np.testing.assert_array_equal(both_ways("float16", huge)[1], [65504, -65504, 0])
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(both_ways("bfloat16", ties)[1], [1, 1 + 2**-6])


def test_topk_keeps_the_largest(layer: Floats) -> None:
    size, decoded = both_ways("topk:fraction=0.01", layer)
    kept = decoded != 0
    assert kept.sum() == layer.size // 100
    assert np.abs(layer[kept]).min() >= np.abs(layer[~kept]).max()
    np.testing.assert_allclose(decoded[kept], layer[kept], rtol=2**-10)
    # 2 bytes a value, and no more than the entropy of a bitmap of where they are (8.08 bits each).
    assert size < layer.size // 100 * (2 + 8.08 / 8) + 200


@pytest.mark.parametrize("spec", ["identity", "float16", "uniform", "step:bits=1", "eden", "topk"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_not_finite_or_absurd_is_not_encoded(spec: str, value: float) -> None:
    array = np.ones(1000, np.float32)
    array[7] = value
    with pytest.raises(NotEncodable, match="not finite"):
        make_codec(spec).encode(array, np.random.default_rng(0))
