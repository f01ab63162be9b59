"""Named arrays: a model's weights by name, outside of any framework."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from settings.errors import InputError

Array = npt.NDArray[Any]
NamedArrays = dict[str, Array]

SMALL = 10_000
"""Elements that numpy has multiplied before torch has begun to add (1 us against 3)."""


def arrays_of(module: nn.Module) -> NamedArrays:
    """A module's parameters and buffers by state name, sharing the module's memory."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}


def trainable_names(module: nn.Module) -> list[str]:
    """Names of what clients train and send; buffers (BatchNorm's averages) are only broadcast, as in TFF."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


@torch.no_grad()
def load_arrays(module: nn.Module, arrays: Mapping[str, Array], source: str) -> None:
    """Copy arrays into a module in place.

    Args:
        module: Takes every array; its state names must equal the arrays' names.
        arrays: Values by state name.
        source: Where the arrays come from, for the error.

    Raises:
        InputError: A name that is missing or unknown, or a shape that does not fit.
    """
    state = module.state_dict()
    check_names(arrays, state, source)
    for name, tensor in state.items():
        array = arrays[name]
        if tuple(tensor.shape) != array.shape:
            raise InputError(
                f"{source}: {name} has shape {array.shape}, the model needs {tuple(tensor.shape)}"
            )
        tensor.copy_(torch.from_numpy(array))


def check_names(given: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    """Raise InputError unless both have the same names."""
    missing = [name for name in wanted if name not in given]
    surplus = [name for name in given if name not in wanted]
    if missing or surplus:
        said = [
            f"{what} {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
            for what, names in (("lacks", missing), ("has unknown", surplus))
            if names
        ]
        raise InputError(f"{source} is of another architecture: it {' and '.join(said)}")


def is_finite(arrays: Mapping[str, Array]) -> bool:
    """Whether no array holds a NaN or an infinity."""
    # A sum is non-finite if any term is, and costs no temporary; only a sum that overflows needs the full look.
    with np.errstate(over="ignore", invalid="ignore"):
        return all(
            math.isfinite(_sum(array)) or bool(np.isfinite(array).all())
            for array in arrays.values()
            if array.dtype.kind == "f"
        )


def _sum(array: Array) -> float:
    """The terms' sum, or where starting torch takes longer than adding up, that of their squares."""
    if array.size > SMALL:
        return float(torch.from_numpy(array).sum())
    flat = array.ravel(order="K")
    return float(flat.dot(flat))


def max_abs(array: Array) -> float:
    """The largest magnitude in an array of floats, without a copy of it; 0 if it is empty, NaN if it holds one."""
    return max(-float(array.min()), float(array.max())) if array.size else 0.0


def linf_norm(arrays: Mapping[str, Array]) -> float:
    """The largest magnitude in any array; 0 for none."""
    return max(map(max_abs, arrays.values()), default=0.0)


def l2_norm(arrays: Mapping[str, Array]) -> float:
    """The Euclidean norm of all arrays together; infinity where float32 cannot hold its square."""
    return float(np.sqrt(sum(float(np.vdot(a, a)) for a in arrays.values())))


def fingerprint(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes: equal exactly if the models are bit-identical."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
