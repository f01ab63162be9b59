"""Where a Keras layer's arrays go in its PyTorch module, and how each is laid out there.

`ARRAYS` lists, per class of layer and in Keras's order, Keras's name of an array and its `Slot`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Slot(NamedTuple):
    """One Keras array's place in a module."""

    targets: tuple[str, ...]
    """The module's parameters or buffers that hold it."""
    to_torch: Callable[[Tensor], tuple[Tensor, ...]]
    """From Keras's layout to one tensor for each target."""
    to_keras: Callable[..., Tensor]
    """From the targets to Keras's layout; also for meta tensors, which tells Keras's shape."""
    initializer: tuple[str, Any]
    """The option that names the initializer, and Keras's default."""


def _same(x: Tensor) -> Tensor:
    return x


def _transposed(x: Tensor) -> Tensor:
    return x.t()


def _swapped(x: Tensor) -> Tensor:
    """Three blocks of rows from Keras's z, r, h to torch's r, z, n, or back."""
    # Not torch.cat, which for a meta tensor imports torch._dynamo: 1.5 seconds.
    order = torch.tensor([1, 0, 2], device=x.device)
    return x.reshape(3, -1, *x.shape[1:]).index_select(0, order).flatten(0, 1)


def _gates_out(kernel: Tensor) -> Tensor:
    """A GRU kernel (inputs, 3 * units) as torch's (3 * units, inputs)."""
    return _swapped(kernel.t())


def _gates_in(weight: Tensor) -> Tensor:
    return _swapped(weight).t()


def _two_biases(bias: Tensor) -> tuple[Tensor, ...]:
    """A bias (2, 3 * units), or flat as cuDNN has it, as torch's two."""
    return tuple(_swapped(row) for row in bias.reshape(2, -1))


def _stacked_biases(bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    rows = bias_ih.new_empty(2, len(bias_ih))
    rows[0].copy_(_swapped(bias_ih))
    rows[1].copy_(_swapped(bias_hh))
    return rows


def _flat_biases(bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
    return _stacked_biases(bias_ih, bias_hh).flatten()


def _cudnn_out(kernel: Tensor) -> Tensor:
    """A CuDNNGRU kernel (inputs, 3 * units) as torch's (3 * units, inputs).

    Each gate's block of columns holds the numbers of cuDNN's own row-major (units, inputs) matrix
    under the shape (inputs, units). Keras undoes that with `k.T.reshape(k.shape, order="F")` for the
    input kernel and `k.T` for the recurrent one (`_convert_rnn_weights` of Keras 2's hdf5_format).
    """
    inputs, units = kernel.shape[0], kernel.shape[1] // 3
    gates = kernel.reshape(inputs, 3, units).transpose(0, 1)
    return _swapped(gates.reshape(3 * units, inputs))


def _cudnn_in(weight: Tensor) -> Tensor:
    units, inputs = weight.shape[0] // 3, weight.shape[1]
    gates = _swapped(weight).reshape(3, inputs, units)
    return gates.transpose(0, 1).reshape(inputs, 3 * units)


def _slot(
    target: str,
    initializer: tuple[str, Any],
    out: Callable[[Tensor], Tensor] = _same,
    back: Callable[[Tensor], Tensor] = _same,
) -> Slot:
    """One array in one target."""
    return Slot((target,), lambda x: (out(x),), back, initializer)


KERNEL = ("kernel_initializer", "glorot_uniform")
RECURRENT = ("recurrent_initializer", "orthogonal")
BIAS = ("bias_initializer", "zeros")

_BIAS = _slot("bias", BIAS)
_NORM: dict[str, Slot] = {
    "gamma": _slot("weight", ("gamma_initializer", "ones")),
    "beta": _slot("bias", ("beta_initializer", "zeros")),
}

ARRAYS: dict[str, dict[str, Slot]] = {
    "Embedding": {"embeddings": _slot("weight", ("embeddings_initializer", "random_uniform"))},
    "Dense": {"kernel": _slot("weight", KERNEL, _transposed, _transposed), "bias": _BIAS},
    "Conv2D": {
        "kernel": _slot(
            "weight", KERNEL, lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0)
        ),
        "bias": _BIAS,
    },
    "GRU": {
        "kernel": _slot("weight_ih", KERNEL, _gates_out, _gates_in),
        "recurrent_kernel": _slot("weight_hh", RECURRENT, _gates_out, _gates_in),
        "bias": _slot("bias_ih", BIAS, _swapped, _swapped),
    },
    "CuDNNGRU": {
        "kernel": _slot("weight_ih", KERNEL, _cudnn_out, _cudnn_in),
        "recurrent_kernel": _slot("weight_hh", RECURRENT, _cudnn_out, _cudnn_in),
        "bias": Slot(("bias_ih", "bias_hh"), _two_biases, _flat_biases, BIAS),
    },
    "LSTM": {
        "kernel": _slot("weight_ih", KERNEL, _transposed, _transposed),
        "recurrent_kernel": _slot("weight_hh", RECURRENT, _transposed, _transposed),
        "bias": _slot("bias_ih", BIAS),
    },
    "BatchNormalization": {
        **_NORM,
        "moving_mean": _slot("running_mean", ("moving_mean_initializer", "zeros")),
        "moving_variance": _slot("running_var", ("moving_variance_initializer", "ones")),
    },
    "LayerNormalization": _NORM,
}
_RESET_AFTER = Slot(("bias_ih", "bias_hh"), _two_biases, _stacked_biases, BIAS)


class Variable(NamedTuple):
    """One of a model's arrays as Keras knows it."""

    layer: str
    class_name: str
    name: str
    slot: Slot
    shape: tuple[int, ...]
    """In Keras's layout."""


def variables(layer: str, class_name: str, module: nn.Module) -> list[Variable]:
    """The arrays that a layer has, in Keras's order; those that options leave out are left out."""
    found = []
    for name, slot in ARRAYS.get(class_name, {}).items():
        if class_name == "GRU" and name == "bias" and module.bias_hh is not None:
            slot = _RESET_AFTER
        tensors = [getattr(module, target) for target in slot.targets]
        if all(tensor is not None for tensor in tensors):
            shape = tuple(slot.to_keras(*(tensor.to("meta") for tensor in tensors)).shape)
            found.append(Variable(layer, class_name, name, slot, shape))
    return found
