"""The weighted mean, against numpy in float64."""

import numpy as np
import pytest
import torch

from server.aggregation import WeightedMean
from weights.named import SMALL, NamedArrays

LIKE = {
    "bias": torch.zeros(7),
    "large": torch.zeros(SMALL + 1),
    "matrix": torch.zeros(5, 4),
    "one": torch.zeros(()),
    "double": torch.zeros(3, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}
WEIGHTS = (3.0, 20.0, 1.0)


def updates() -> list[NamedArrays]:
    rng = np.random.default_rng(0)
    return [
        {name: np.asarray(rng.normal(size=t.shape), t.numpy().dtype) for name, t in LIKE.items()}
        for _ in WEIGHTS
    ]


def mean_of(given: WeightedMean) -> NamedArrays:
    mean = given.mean()
    assert mean is not None
    return {name: tensor.numpy().copy() for name, tensor in mean.items()}


def test_small_and_large_arrays_of_any_shape() -> None:
    mean = WeightedMean(LIKE)
    for _ in range(2):  # the same memory serves the next round
        mean.reset()
        for update, weight in zip(updates(), WEIGHTS, strict=True):
            assert mean.add(update, weight)
        assert (mean.total_weight, mean.largest_weight) == (24.0, 20.0)
        got = mean_of(mean)
        assert [*got] == [*LIKE]
        for name, array in got.items():
            each = [update[name].astype(np.float64) for update in updates()]
            wanted = np.average(each, axis=0, weights=WEIGHTS)
            assert (array.shape, array.dtype) == (wanted.shape, LIKE[name].numpy().dtype)
            np.testing.assert_allclose(array, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bias", "large", "one", "double"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_leaves_no_trace(name: str, value: float) -> None:
    clean, bad = WeightedMean(LIKE), WeightedMean(LIKE)
    damaged = updates()[1]
    damaged[name] = np.where(np.arange(damaged[name].size) == 0, value, damaged[name].ravel())
    damaged[name] = damaged[name].reshape(LIKE[name].shape).astype(LIKE[name].numpy().dtype)
    assert not bad.add(damaged, 100.0)
    for update, weight in zip(updates(), WEIGHTS, strict=True):
        clean.add(update, weight)
        bad.add(update, weight)
        assert not bad.add(damaged, 100.0)
    assert bad.total_weight == clean.total_weight
    assert bad.largest_weight == clean.largest_weight
    wanted = mean_of(clean)
    for key, array in mean_of(bad).items():
        assert np.array_equal(array, wanted[key])


@pytest.mark.parametrize("name", ["bias", "large"])
def test_a_sum_that_overflows_has_no_mean(name: str) -> None:
    mean = WeightedMean(LIKE)
    update = updates()[0]
    update[name] = np.full_like(update[name], 3e38)
    assert mean.add(update, 1.0)
    assert mean.add(update, 1.0)
    assert mean.mean() is None
