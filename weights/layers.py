"""Keras's activations and feed-forward layers as PyTorch modules.

Every module takes and gives exactly the tensors that the Keras layer takes and gives. Arrays are
left unset: a file or an initializer fills them. Images are in `image_layers`, recurrence in
`recurrent`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights.factored import factored_linear

Activation = Callable[[Tensor], Tensor]


def linear(x: Tensor) -> Tensor:
    """No activation."""
    return x


def hard_sigmoid(x: Tensor) -> Tensor:
    """Keras 1's and 2's hard sigmoid (`tf.keras.backend.hard_sigmoid`); Keras 3's is torch's."""
    return (0.2 * x + 0.5).clamp(0, 1)


# With Keras's defaults (keras/src/activations): gelu is the exact one, leaky_relu's slope is 0.2.
ACTIVATIONS: dict[str, Activation] = {
    "linear": linear,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "gelu": F.gelu,
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "hard_silu": F.hardswish,
    "hard_swish": F.hardswish,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "hard_sigmoid": hard_sigmoid,
    "hard_sigmoid_v3": F.hardsigmoid,
    "softmax": partial(torch.softmax, dim=-1),
    "log_softmax": partial(torch.log_softmax, dim=-1),
    "softplus": F.softplus,
    "softsign": F.softsign,
    "exponential": torch.exp,
}


class Activate(nn.Module):
    """Keras's Activation and Softmax: a function of its own."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, the same shape."""
        return self.activation(x)


class ReLU(nn.Module):
    """Keras's ReLU layer: x up to `max_value`, negative_slope * (x - threshold) below `threshold`."""

    def __init__(self, max_value: float | None, negative_slope: float, threshold: float) -> None:
        super().__init__()
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, the same shape."""
        y = torch.where(x >= self.threshold, x, self.negative_slope * (x - self.threshold))
        return y if self.max_value is None else y.clamp(max=self.max_value)


class Embedding(nn.Module):
    """Keras's Embedding; `weight` is (symbols, features)."""

    def __init__(self, symbols: int, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(symbols, features))

    def forward(self, x: Tensor) -> Tensor:
        """Ids of any shape and dtype, floats too as Keras takes them, to (*shape, features)."""
        return F.embedding(self.ids(x), self.weight)

    def ids(self, x: Tensor) -> Tensor:
        """Ids in a dtype that torch takes."""
        return x if x.dtype in (torch.int64, torch.int32) else x.long()


class Dense(nn.Module):
    """Keras's Dense; `weight` is (units, inputs), `bias` (units,) or None."""

    def __init__(self, inputs: int, units: int, use_bias: bool, activation: Activation) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, inputs))
        self.bias = nn.Parameter(torch.empty(units)) if use_bias else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., units)."""
        y = factored_linear(x, self.weight, self.bias)
        return self.activation(F.linear(x, self.weight, self.bias) if y is None else y)


class Reshape(nn.Module):
    """Keras's Reshape; one of the target's sizes may be -1."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) to (batch, *shape)."""
        return x.reshape(x.shape[0], *self.shape)


class BatchNormalization(nn.Module):
    """Keras's BatchNormalization over the last axis.

    In training it normalises by the batch's mean and biased variance, and moves the running ones by
    running = momentum * running + (1 - momentum) * batch (torch's momentum is the complement). Any
    batch size will do, where torch's own layer refuses a single row.

    Args:
        features: Size of the last axis.
        momentum: Keras's.
        epsilon: Added to the variance.
        center: Whether there is a `bias`.
        scale: Whether there is a `weight`.
        bessel: Move the running variance to the unbiased one, as Keras 2 does for images.
        trainable: A layer frozen in Keras uses the running statistics in training too.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        features: int,
        momentum: float,
        epsilon: float,
        center: bool,
        scale: bool,
        bessel: bool,
        trainable: bool,
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.epsilon = epsilon
        self.bessel = bessel
        self.trainable = trainable
        self.weight = nn.Parameter(torch.empty(features)) if scale else None
        self.bias = nn.Parameter(torch.empty(features)) if center else None
        self.register_buffer("running_mean", torch.empty(features))
        self.register_buffer("running_var", torch.empty(features))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ..., features), the same shape."""
        mean, variance = self.running_mean, self.running_var
        if self.training and self.trainable:
            variance, mean = torch.var_mean(x, dim=tuple(range(x.ndim - 1)), correction=0)
            self._follow(mean.detach(), variance.detach(), x.numel() // x.shape[-1])
        y = (x - mean) * torch.rsqrt(variance + self.epsilon)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics towards those of a batch of `count` rows."""
        if self.bessel:
            variance = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean, 1 - self.momentum)
        self.running_var.lerp_(variance, 1 - self.momentum)


class LayerNormalization(nn.Module):
    """Keras's LayerNormalization over the last axis."""

    def __init__(self, features: int, epsilon: float, center: bool, scale: bool) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.features = features
        self.weight = nn.Parameter(torch.empty(features)) if scale else None
        self.bias = nn.Parameter(torch.empty(features)) if center else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., features), the same shape."""
        return F.layer_norm(x, (self.features,), self.weight, self.bias, self.epsilon)
