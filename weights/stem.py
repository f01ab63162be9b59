"""A first convolution and the maximum over windows of its outputs, of images that need no gradient."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from weights.processor import registers

_MOST_TAPS = 100
"""Weights of a filter up to which the kernels are made, which write every single one out."""

Kernel = Callable[..., None]


def stem(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: tuple[int, int],
    window: int,
    size: tuple[int, int],
) -> Tensor | None:
    """`max_pool2d(conv2d(images, weight, bias, padding=padding), window)` of images that need no gradient.

    Args:
        images: (batch, channels, height, width), float32.
        weight: (filters, channels, rows, columns), float32.
        bias: (filters,) or None.
        padding: Rows and columns of zeros on either side.
        window: Height, width and stride of the windows.
        size: Height and width of the convolution's outputs.

    Returns:
        (batch, filters, height', width'), float32, under autocast too; None where torch's own operators are to be
        taken: filters that fill no vector registers, or have many weights.
    """
    kernels = _kernels(*size, window, *weight.shape)
    if kernels is None or images.dtype != torch.float32:
        return None
    shape = (len(images), size[0] // window, size[1] // window, len(weight))
    maxima: Tensor = _Stem.apply(images, weight, bias, padding, shape, kernels)  # type: ignore[no-untyped-call]
    return maxima


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
        shape: tuple[int, ...],
        kernels: tuple[Kernel, Kernel],
    ) -> Tensor:
        rows, columns = padding
        # In memory (batch, height, width, channels) and (rows, columns, channels, filters), as the kernels take them.
        padded = F.pad(images, (columns, columns, rows, rows)).permute(0, 2, 3, 1).contiguous()
        factors = weight.permute(2, 3, 1, 0).contiguous()
        addends = weight.new_zeros(len(weight)) if bias is None else bias
        maxima, winners = torch.empty(shape), torch.empty(shape)
        of_maxima, ctx.of_weights = kernels
        of_maxima(maxima, winners, padded, factors, addends)
        ctx.save_for_backward(padded, winners)
        ctx.like = factors.shape
        return maxima.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, winners = ctx.saved_tensors
        slopes = gradient.permute(0, 2, 3, 1).float().contiguous()
        d_weight = torch.zeros(ctx.like)
        ctx.of_weights(slopes, winners, padded, d_weight)
        d_bias = slopes.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        return None, d_weight.permute(3, 2, 0, 1), d_bias, None, None, None


@functools.cache
def _kernels(
    height: int, width: int, window: int, filters: int, channels: int, rows: int, columns: int
) -> tuple[Kernel, Kernel] | None:
    """The kernels for such images, over tensors of which the first has an entry for each; None where there are none."""
    vectors = registers()
    fits = min(height, width) >= window and channels * rows * columns <= _MOST_TAPS
    if vectors is None or filters % vectors.lanes or not fits:
        return None
    from weights.stem_kernel import Sizes, gradient, maxima

    sizes = Sizes(height, width, window, channels, filters, rows, columns)
    return _over_tensors(maxima(sizes, vectors)), _over_tensors(gradient(sizes, vectors))


def _over_tensors(kernel: Kernel) -> Kernel:
    return lambda *tensors: kernel(len(tensors[0]), *[tensor.data_ptr() for tensor in tensors])
