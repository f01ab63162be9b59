"""Keras layers by class name, and how each is built as a PyTorch module.

`BUILDERS` gives the module and the output's shape for a layer's options and its input's shape; sizes
that are only known at run time are None. The arrays are in `keras_arrays`.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from settings.errors import InputError, counted
from weights.image_layers import (
    AveragePooling2D,
    Conv2D,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Window,
)
from weights.keras_options import Options, size_of
from weights.layers import (
    ACTIVATIONS,
    Activate,
    BatchNormalization,
    Dense,
    Embedding,
    LayerNormalization,
    ReLU,
    Reshape,
)
from weights.recurrent import GRU, LSTM

Shape = tuple[int | None, ...]
Built = tuple[nn.Module, Shape]


def _features(shape: Shape, rank: int | None = None) -> int:
    """The last axis' size, for a layer that needs it, and inputs of that many axes."""
    if rank is not None and len(shape) != rank:
        raise InputError(f"needs inputs of {rank} axes, gets {shape}")
    if len(shape) < 2 or shape[-1] is None:
        raise InputError(f"needs a known last axis, gets {shape}")
    return shape[-1]


def _dense(options: Options, shape: Shape) -> Built:
    units, use_bias = options.size("units"), options.flag("use_bias", True)
    activation = ACTIVATIONS[options.activation("activation")]
    return Dense(_features(shape), units, use_bias, activation), (*shape[:-1], units)


def _embedding(options: Options, shape: Shape) -> Built:
    features = options.size("output_dim")
    return Embedding(options.size("input_dim"), features), (*shape, features)


def _recurrent(options: Options, shape: Shape, default: str = "sigmoid") -> dict[str, Any]:
    """The arguments that GRU and LSTM share."""
    return {
        "input_size": _features(shape, rank=3),
        "units": options.size("units"),
        "activation": options.activation("activation", "tanh"),
        "recurrent_activation": options.activation("recurrent_activation", default),
        "use_bias": options.flag("use_bias", True),
        "return_sequences": options.flag("return_sequences", False),
        "stateful": options.flag("stateful", False),
        "go_backwards": options.flag("go_backwards", False),
    }


def _sequence(layer: GRU | LSTM, shape: Shape) -> Built:
    return layer, (*shape[: 2 if layer.return_sequences else 1], layer.units)


def _gru(options: Options, shape: Shape) -> Built:
    # Files that do not say are of Keras 1 or TensorFlow 1.x, whose GRU resets before the product.
    reset_after = options.flag("reset_after", False)
    return _sequence(GRU(**_recurrent(options, shape), reset_after=reset_after), shape)


def _cudnn_gru(options: Options, shape: Shape) -> Built:
    return _sequence(GRU(**_recurrent(options, shape), reset_after=True), shape)


def _lstm(options: Options, shape: Shape) -> Built:
    return _sequence(LSTM(**_recurrent(options, shape)), shape)


def _windowed(layer: Window, shape: Shape, channels: int) -> Built:
    sides = [
        None if size is None else layer.output_size(size, axis)
        for axis, size in enumerate(shape[1:3])
    ]
    if any(side is not None and side < 1 for side in sides):
        raise InputError(f"a window of {layer.window} does not fit into inputs of {shape}")
    return layer, (shape[0], *sides, channels)


def _conv2d(options: Options, shape: Shape) -> Built:
    channels, filters = _features(shape, rank=4), options.size("filters")
    groups = options.size("groups", 1)
    if channels % groups or filters % groups:
        into = f"{counted(channels, 'channel')} and {counted(filters, 'filter')}"
        raise InputError(f"{groups} groups do not divide {into}")
    layer = Conv2D(
        channels,
        filters,
        options.pair("kernel_size"),
        options.pair("strides", (1, 1)),
        options.padding(),
        options.pair("dilation_rate", (1, 1)),
        groups,
        options.flag("use_bias", True),
        ACTIVATIONS[options.activation("activation")],
    )
    return _windowed(layer, shape, filters)


def _pooling(kind: type[Window]) -> Callable[[Options, Shape], Built]:
    def build(options: Options, shape: Shape) -> Built:
        channels, window = _features(shape, rank=4), options.pair("pool_size", (2, 2))
        layer = kind(window, options.pair("strides", window), options.padding())
        return _windowed(layer, shape, channels)

    return build


def _global_average(options: Options, shape: Shape) -> Built:
    channels, keepdims = _features(shape, rank=4), options.flag("keepdims", False)
    options.padding()
    output: Shape = (shape[0], 1, 1, channels) if keepdims else (shape[0], channels)
    return GlobalAveragePooling2D(keepdims), output


def _flatten(options: Options, shape: Shape) -> Built:
    options.padding()
    return nn.Flatten(), (shape[0], _count(shape[1:]))


def _count(shape: Shape) -> int | None:
    """Elements, if every size is known."""
    sizes = [size for size in shape if size is not None]
    return math.prod(sizes) if len(sizes) == len(shape) else None


def _reshape(options: Options, shape: Shape) -> Built:
    target = [
        -1 if size == -1 else size_of("target_shape", size) for size in options.take("target_shape")
    ]
    output, total = list[int | None](target), _count(shape[1:])
    if target.count(-1) > 1:
        raise InputError(f"target_shape {target} has more than one -1")
    if -1 in target:
        rest = math.prod(size for size in target if size != -1)
        output[target.index(-1)] = total and total // rest
    if total is not None and math.prod(size or 1 for size in output) != total:
        raise InputError(f"target_shape {target} does not fit inputs of {shape}")
    return Reshape(tuple(target)), (shape[0], *output)


def _dropout(options: Options, shape: Shape) -> Built:
    return nn.Dropout(options.number("rate", 0.5)), shape


def _activation(options: Options, shape: Shape) -> Built:
    return Activate(ACTIVATIONS[options.activation("activation")]), shape


def _softmax(options: Options, shape: Shape) -> Built:
    options.last_axis(len(shape))
    return Activate(ACTIVATIONS["softmax"]), shape


def _relu(options: Options, shape: Shape) -> Built:
    limit = None if options.left.get("max_value") is None else options.number("max_value", 0)
    slope, threshold = options.number("negative_slope", 0), options.number("threshold", 0)
    return ReLU(limit, slope, threshold), shape


def _batch_normalization(options: Options, shape: Shape) -> Built:
    options.last_axis(len(shape))
    layer = BatchNormalization(
        _features(shape),
        options.number("momentum", 0.99),
        options.number("epsilon", 1e-3),
        options.flag("center", True),
        options.flag("scale", True),
        bessel=options.keras < 3 and len(shape) == 4,
        trainable=options.trainable,
    )
    return layer, shape


def _layer_normalization(options: Options, shape: Shape) -> Built:
    options.last_axis(len(shape))
    center, scale = options.flag("center", True), options.flag("scale", True)
    return LayerNormalization(
        _features(shape), options.number("epsilon", 1e-3), center, scale
    ), shape


BUILDERS: dict[str, Callable[[Options, Shape], Built]] = {
    "Embedding": _embedding,
    "GRU": _gru,
    "CuDNNGRU": _cudnn_gru,
    "LSTM": _lstm,
    "Dense": _dense,
    "Conv2D": _conv2d,
    "MaxPooling2D": _pooling(MaxPooling2D),
    "AveragePooling2D": _pooling(AveragePooling2D),
    "GlobalAveragePooling2D": _global_average,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Dropout": _dropout,
    "Activation": _activation,
    "ReLU": _relu,
    "Softmax": _softmax,
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
}
