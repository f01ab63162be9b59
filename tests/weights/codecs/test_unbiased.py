"""Codecs that claim E[decode(encode(x))] = x, by a test that those which do not claim it fail."""

import numpy as np
import numpy.typing as npt
import pytest

from weights.codecs.catalogue import make_codec
from weights.codecs.lloyd import lloyd_max

Floats = npt.NDArray[np.float32]

UNBIASED = [
    "identity",
    "uniform:bits=1",
    "uniform:bits=8",
    "uniform:bits=3,entropy=true",
    "step:bits=1.06",
    "step:bits=3",
    "step:error=0.3",
    "step:step=2.0",
    *(f"eden:bits={bits}" for bits in range(1, 9)),
]
BIASED = [
    "float16",
    "bfloat16",
    "uniform:bits=2,rounding=nearest",
    "step:bits=0.5,rounding=nearest",
    "step:error=0.1,rounding=nearest",
    "topk:fraction=0.1",
]


def vectors() -> dict[str, Floats]:
    rng = np.random.default_rng(5)
    return {
        "normal": rng.standard_normal(2000).astype(np.float32),
        "heavy": (rng.standard_normal(2000) ** 3).astype(np.float32),
        "spike": np.append(rng.standard_normal(127), 10).astype(np.float32),
        "pair": np.append(np.zeros(126), [3, 2]).astype(np.float32),
    }


def z_scores(spec: str, x: Floats, draws: int = 250) -> npt.NDArray[np.float64]:
    """The mean error's projections on what a bias would point along, in standard deviations.

    Shrinking shows on the sign of x, over all elements and over the larger and the smaller half; and
    random directions. A deviation below float32's own precision counts as that precision.
    """
    rng = np.random.default_rng(11)
    is_large = np.abs(x) > np.median(np.abs(x))
    sign = np.sign(x)
    is_largest = np.abs(x) == np.abs(x).max()
    along = [sign, sign * is_large, sign * ~is_large, sign * is_largest, np.ones_like(x)]
    directions = np.stack([*along, *rng.standard_normal((3, len(x)))])
    codec = make_codec(spec)
    errors = np.stack(
        [directions @ (codec.decode(codec.encode(x, rng), x.shape) - x) for _ in range(draws)]
    )
    floor = 1e-6 * np.abs(directions) @ np.abs(x)
    return np.asarray(errors.mean(0) / (errors.std(0) / np.sqrt(draws) + floor + 1e-30))


@pytest.mark.parametrize("spec", UNBIASED)
def test_unbiased(spec: str) -> None:
    assert make_codec(spec).unbiased
    for name, x in vectors().items():
        assert np.abs(z_scores(spec, x)).max() < 4.5, name


@pytest.mark.parametrize("spec", BIASED)
def test_the_test_finds_a_bias(spec: str) -> None:
    assert not make_codec(spec).unbiased
    assert np.abs(z_scores(spec, vectors()["heavy"])).max() > 20


@pytest.mark.parametrize(("bits", "published"), [(1, 0.571), (2, 0.133), (3, 0.036), (4, 0.0096)])
@pytest.mark.parametrize("count", [2**15, 20_001, 100_000])
def test_eden_errs_as_published(bits: int, published: float, count: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal(count).astype(np.float32)
    codec = make_codec(f"eden:bits={bits}")
    payload = codec.encode(x, rng)
    error = np.sum((codec.decode(payload, x.shape) - x) ** 2) / np.sum(x**2)
    assert abs(error / published - 1) < 0.05
    assert len(payload) < count * bits / 8 * 1.01 + 100


def test_eden_does_not_see_how_the_energy_is_spread() -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((200, 300)) ** 7).astype(np.float32)
    codec = make_codec("eden:bits=2")
    error = np.sum((codec.decode(codec.encode(x, rng), x.shape) - x) ** 2.0) / np.sum(x**2.0)
    assert abs(error / 0.133 - 1) < 0.05


def test_levels_are_max_s() -> None:
    """Max (1960), table I."""
    published = {
        1: [0.7980],
        2: [0.4528, 1.510],
        3: [0.2451, 0.7560, 1.344, 2.152],
        4: [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
    }
    for bits, positive in published.items():
        levels = lloyd_max(bits)
        np.testing.assert_allclose(levels[len(levels) // 2 :], positive, atol=6e-4)
        np.testing.assert_array_equal(levels, -levels[::-1])
