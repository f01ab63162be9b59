"""Named arrays of modules: into them, out of them, finite or not, and their fingerprint."""

import numpy as np
import pytest
import torch
from torch import nn

from settings.errors import InputError
from weights.named import (
    NamedArrays,
    arrays_of,
    fingerprint,
    is_finite,
    load_arrays,
    trainable_names,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def test_arrays_share_the_modules_memory() -> None:
    module = Small()
    arrays = arrays_of(module)
    assert list(arrays) == list(module.state_dict())
    with torch.no_grad():
        module.dense.weight.fill_(4)
    assert (arrays["dense.weight"] == 4).all()
    assert arrays["norm.num_batches_tracked"].shape == ()


def test_only_parameters_with_gradients_are_trained() -> None:
    assert trainable_names(Small()) == ["dense.weight", "dense.bias", "norm.weight", "norm.bias"]


def test_load_copies_in_place() -> None:
    source, target = Small(), Small()
    weight = target.dense.weight
    arrays = {name: array.copy() for name, array in arrays_of(source).items()}
    load_arrays(target, arrays, "test")
    assert target.dense.weight is weight
    assert fingerprint(arrays_of(target)) == fingerprint(arrays_of(source))
    arrays["dense.weight"][:] = 9
    assert not (target.dense.weight == 9).any()


def test_load_refuses_what_does_not_fit() -> None:
    module = Small()
    good = {name: array.copy() for name, array in arrays_of(module).items()}
    before = fingerprint(good)
    lacking = {name: array for name, array in good.items() if name != "dense.bias"}
    with pytest.raises(InputError, match=r"^x.h5 is of another architecture: it lacks dense.bias$"):
        load_arrays(module, lacking, "x.h5")
    with pytest.raises(InputError, match=r"has unknown extra$"):
        load_arrays(module, {**good, "extra": np.ones(1)}, "x.h5")
    with pytest.raises(
        InputError, match=r"dense.weight has shape \(2, 4\), the model needs \(2, 3\)"
    ):
        load_arrays(module, {**good, "dense.weight": np.ones((2, 4))}, "x.h5")
    assert fingerprint(arrays_of(module)) == before


@pytest.mark.parametrize("size", [4, 20_000])
def test_is_finite(size: int) -> None:
    fine = {"a": np.ones((2, size // 2), np.float32), "n": np.array(5)}
    assert is_finite(fine)
    assert is_finite({})
    for bad in (np.nan, np.inf, -np.inf):
        odd = np.zeros(size, np.float32)
        odd[size // 3] = bad
        assert not is_finite({**fine, "b": odd})
        assert not is_finite({**fine, "b": odd.reshape(2, -1).T})
    assert not is_finite({"b": np.tile([np.inf, -np.inf], size // 2)})
    assert is_finite({"sum overflows": np.full(size, 3e38, np.float32)})


def test_fingerprint_sees_every_difference() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    same = {"b": np.ones(2, np.float32), "a": np.asfortranarray(np.zeros((2, 3), np.float32))}
    assert fingerprint(base) == fingerprint(same)
    others: list[NamedArrays] = [
        {**base, "b": np.array([1, np.nextafter(np.float32(1), np.float32(2))], np.float32)},
        {**base, "a": np.zeros((3, 2), np.float32)},
        {**base, "a": np.zeros((2, 3), np.int32)},
        {"c": base["a"], "b": base["b"]},
        {**base, "empty": np.zeros((0, 2), np.float32)},
        {**base, "scalar": np.array(0.0, np.float32)},
        {**base, "a": np.full((2, 3), -0.0, np.float32)},
    ]
    assert len({fingerprint(arrays) for arrays in [base, *others]}) == 8
