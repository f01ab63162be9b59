"""Keras's initializers, drawn from torch's global random numbers.

The formulas are those of keras/src/initializers: `VarianceScaling` with its named special cases,
whose truncated normal is widened by what the truncation at two sigma takes from its deviation.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from settings.errors import InputError, unknown

# Standard deviation of a unit normal truncated to (-2, 2).
TRUNCATED_STDDEV = 0.87962566103423978


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Inputs and outputs of a kernel in Keras's layout, (..., inputs, outputs)."""
    if len(shape) < 2:
        return shape[0], shape[0]
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


def _variance_scaling(x: Tensor, scale: float, mode: str, distribution: str) -> None:
    fan_in, fan_out = _fans(tuple(x.shape))
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    if mode not in fans:
        raise unknown("VarianceScaling mode", mode, fans)
    variance = scale / max(1.0, fans[mode])
    if distribution == "uniform":
        limit = math.sqrt(3 * variance)
        nn.init.uniform_(x, -limit, limit)
    elif distribution == "untruncated_normal":
        nn.init.normal_(x, 0, math.sqrt(variance))
    else:
        stddev = math.sqrt(variance) / TRUNCATED_STDDEV
        nn.init.trunc_normal_(x, 0, stddev, -2 * stddev, 2 * stddev)


def _truncated_normal(x: Tensor, mean: float = 0.0, stddev: float = 0.05) -> None:
    nn.init.trunc_normal_(x, mean, stddev, mean - 2 * stddev, mean + 2 * stddev)


def _uniform(x: Tensor, minval: float = -0.05, maxval: float = 0.05) -> None:
    nn.init.uniform_(x, minval, maxval)


def _normal(x: Tensor, mean: float = 0.0, stddev: float = 0.05) -> None:
    nn.init.normal_(x, mean, stddev)


def _constant(x: Tensor, value: float = 0.0) -> None:
    nn.init.constant_(x, value)


def _orthogonal(x: Tensor, gain: float = 1.0) -> None:
    nn.init.orthogonal_(x.view(-1, x.shape[-1]), gain)


def _scaled(scale: float, mode: str, distribution: str) -> Callable[[Tensor], None]:
    return lambda x: _variance_scaling(x, scale, mode, distribution)


INITIALIZERS: dict[str, Callable[..., Any]] = {
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "constant": _constant,
    "random_uniform": _uniform,
    "random_normal": _normal,
    "truncated_normal": _truncated_normal,
    "orthogonal": _orthogonal,
    "variance_scaling": _variance_scaling,
    "glorot_uniform": _scaled(1.0, "fan_avg", "uniform"),
    "glorot_normal": _scaled(1.0, "fan_avg", "truncated_normal"),
    "he_uniform": _scaled(2.0, "fan_in", "uniform"),
    "he_normal": _scaled(2.0, "fan_in", "truncated_normal"),
    "lecun_uniform": _scaled(1.0, "fan_in", "uniform"),
    "lecun_normal": _scaled(1.0, "fan_in", "truncated_normal"),
}

# Arguments that do not bear on the distribution.
IGNORED = ("seed", "dtype", "input_axes", "output_axes")


def initialise(x: Tensor, initializer: Any) -> None:
    """Fills `x`, in Keras's layout, as a Keras initializer does.

    Args:
        x: float32, at least one dimension.
        initializer: `GlorotUniform`, `glorot_uniform`, or {"class_name": ..., "config": ...}.

    Raises:
        InputError: An unknown initializer, or arguments that it does not take.
    """
    if isinstance(initializer, str):
        initializer = {"class_name": initializer}
    if not isinstance(initializer, dict) or not isinstance(initializer.get("config", {}), dict):
        raise InputError(f"{initializer!r} is no initializer")
    name, given = str(initializer.get("class_name")), initializer.get("config", {})
    known = {key.replace("_", ""): fill for key, fill in INITIALIZERS.items()}
    fill = known.get(name.replace("_", "").lower())
    if fill is None:
        raise unknown("initializer", name, INITIALIZERS)
    try:
        fill(x, **{key: value for key, value in given.items() if key not in IGNORED})
    except TypeError as error:
        raise InputError(f"initializer {name} with {given}: {error}") from error
