"""The options of a Keras layer: none that would change the numbers is ever ignored."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from settings.errors import InputError, unknown
from weights.image_layers import Pair
from weights.layers import ACTIVATIONS

# Options that leave the numbers as they are, whatever their value.
HARMLESS = {
    "name", "trainable", "batch_input_shape", "seed", "input_length", "implementation", "unroll",
    "fused", "renorm_momentum", "unit_forget_bias",
}  # fmt: skip
MAX_SIZE = 2**31


class Options:
    """A layer's options: each is taken by the builder, harmless, off, or an error."""

    def __init__(self, options: dict[str, Any], keras: int) -> None:
        self.left = {
            key: value
            for key, value in options.items()
            if key not in HARMLESS and not key.endswith("_initializer")
        }
        self.trainable = options.get("trainable") is not False
        self.keras = keras

    def take(self, name: str, default: Any = None) -> Any:
        """The option's value."""
        value = self.left.pop(name, None)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        """A count of units, filters, and the like."""
        return size_of(name, self.take(name, default))

    def pair(self, name: str, default: Sequence[int] | None = None) -> Pair:
        """Height and width; Keras takes one number for both."""
        value = self.take(name, default)
        first, second = value if isinstance(value, list | tuple) else (value, value)
        return size_of(name, first), size_of(name, second)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}, neither true nor false")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.take(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise InputError(f"{name} is {value!r}, not a number")
        return float(value)

    def padding(self) -> Literal["valid", "same"]:
        """How a window meets the border; the images must be NHWC."""
        layout, padding = self.take("data_format", "channels_last"), self.take("padding", "valid")
        if layout != "channels_last":
            raise InputError(f"data_format {layout!r} is not supported, only 'channels_last'")
        if padding not in ("valid", "same"):
            raise unknown("padding", str(padding), ["valid", "same"])
        return "same" if padding == "same" else "valid"

    def activation(self, name: str, default: str = "linear") -> str:
        """An activation's name; `hard_sigmoid_v3` for Keras 3's function of that name."""
        activation = str(self.take(name, default))
        if activation not in ACTIVATIONS:
            raise unknown(name.replace("_", " "), activation, ACTIVATIONS)
        return "hard_sigmoid_v3" if (activation, self.keras) == ("hard_sigmoid", 3) else activation

    def last_axis(self, rank: int) -> None:
        """Check that the layer works on the last axis."""
        axis = self.take("axis", -1)
        if axis not in (-1, [-1], rank - 1, [rank - 1]):
            raise InputError(f"axis {axis} is not supported, only the last one")

    def close(self) -> None:
        """Raise an InputError if an option is on that nobody took."""
        on = {
            key: value for key, value in self.left.items() if value not in (None, False, 0, [], {})
        }
        if on:
            said = ", ".join(f"{key}={value!r}" for key, value in on.items())
            raise InputError(f"not supported: {said[:200]}")


def size_of(name: str, value: Any) -> int:
    """The value, if it is a size; otherwise an InputError about the option `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_SIZE:
        raise InputError(f"{name} is {value!r}, not a size")
    return value
