"""The maximum over windows of a convolution's outputs, with a gradient that leaves out the outputs that did not win."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from weights.processor import registers
from weights.stem import stem

Kernel = Callable[..., None]


def convolved_maximum(
    images: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int], window: int
) -> Tensor | None:
    """`max_pool2d(conv2d(images, weight, bias, padding=padding), window)`, if its gradient can be had sooner.

    That is so in training on one thread of a processor with AVX2 or AVX-512: of a layer whose channels fill whole
    vector registers, and of a first layer (`weights.stem`). On several threads torch's dense gradients, which share the
    work out, may be faster.

    Args:
        images: (batch, channels, height, width), float32, or under autocast what that computes in.
        weight: (filters, channels, rows, columns), float32.
        bias: (filters,) or None.
        padding: Rows and columns of zeros on either side.
        window: Height, width and stride of the windows, 2 at least.

    Returns:
        (batch, filters, height', width'); None where torch's own operators are to be taken.
    """
    trains = torch.is_grad_enabled() and weight.requires_grad and weight.dtype == torch.float32
    if not trains or images.device.type != "cpu" or torch.get_num_threads() > 1:
        return None
    height = images.shape[2] + 2 * padding[0] - weight.shape[2] + 1
    width = images.shape[3] + 2 * padding[1] - weight.shape[3] + 1
    if not images.requires_grad:
        return stem(images, weight, bias, padding, window, (height, width))
    windows = (height // window) * (width // window)
    if (kernel := _kernel(height, width, windows, *weight.shape)) is None:
        return None
    arguments = (images, weight, bias, padding, window, kernel)
    maxima: Tensor = _ConvolvedMaximum.apply(*arguments)  # type: ignore[no-untyped-call]
    return maxima


class _ConvolvedMaximum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        padding: tuple[int, int],
        window: int,
        kernel: Kernel,
    ) -> Tensor:
        outputs = F.conv2d(images, weight, bias, padding=padding)
        maxima, winners = F.max_pool2d(outputs, window, return_indices=True)
        ctx.save_for_backward(images, weight, winners)
        ctx.padding, ctx.kernel = padding, kernel
        return maxima

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight, winners = ctx.saved_tensors
        rows, columns = ctx.padding
        # In memory (batch, height, width, channels), as the kernel takes them.
        padded = _channels_last(F.pad(images.float(), (columns, columns, rows, rows)))
        gradient = _channels_last(gradient.float())
        factors = _channels_last(weight)
        d_weight, d_padded = torch.zeros_like(factors), torch.zeros_like(padded)
        ctx.kernel(d_weight, d_padded, gradient, _channels_last(winners), padded, factors)
        height, width = images.shape[2:]
        d_images = d_padded[:, :, rows : rows + height, columns : columns + width]
        d_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return d_images.to(images.dtype), d_weight, d_bias, None, None, None


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


@functools.cache
def _kernel(
    height: int, width: int, windows: int, filters: int, channels: int, rows: int, columns: int
) -> Kernel | None:
    """The gradients' kernel for such images, over tensors; None where there is none."""
    vectors = registers()
    if vectors is None or channels % vectors.lanes:
        return None
    from weights.sparse_kernel import Sizes, gradients, scratch

    sizes = Sizes(height, width, windows, channels, filters, rows, columns)
    compiled, needs = gradients(sizes, vectors), scratch(sizes)

    def kernel(*tensors: Tensor) -> None:
        places = torch.empty(needs.integers, dtype=torch.int32)
        values = torch.empty(needs.floats)
        pointers = [tensor.data_ptr() for tensor in (*tensors, places, values)]
        compiled(len(tensors[1]), *pointers)

    return kernel
