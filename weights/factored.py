"""Dense layers in bfloat16 whose weights descend by the two factors of their gradient: it is never in memory.

A client's dense layer has a million weights and a batch of twenty rows. torch's autocast makes a copy of the weights in
every step, a gradient in bfloat16 and one in float32, and SGD reads it all again: that takes longer than the products.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from weights.optimizers import is_plain_sgd
from weights.processor import multiplies_bfloat16

_LEAST_WEIGHTS, _MOST_ROWS = 2**19, 64
"""From so many weights on, and up to so many rows, the passes over the weights count more than the products."""

Kernel = Callable[..., None]


class _Factors:
    """The factors of one step's gradients, and what the weights are in bfloat16.

    Args:
        optimizer: Plain SGD.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        [self._group] = optimizer.param_groups
        self._rounded: dict[Tensor, Tensor] = {}
        self._found: list[tuple[Kernel, Tensor, Tensor, Tensor]] = []

    def rounded(self, weight: Tensor) -> Tensor:
        """A weight in bfloat16."""
        if weight not in self._rounded:
            self._rounded[weight] = weight.detach().bfloat16()
        return self._rounded[weight]

    def keep(self, kernel: Kernel, weight: Tensor, slopes: Tensor, inputs: Tensor) -> None:
        """Keep what a gradient is the product of: slopes (rows, units), inputs (rows, features)."""
        self._found.append((kernel, weight, slopes, inputs))

    def descend(self) -> None:
        """Weights -= lr * slopes.mT @ inputs, and their copies with them."""
        copies = {}
        for kernel, weight, slopes, inputs in self._found:
            copy = copies[weight] = self.rounded(weight)
            odd = (0, 0, 0, len(inputs) % 2)
            pairs = F.pad(slopes, odd).reshape(-1, 2, len(weight)).mT.contiguous()
            rows = F.pad(inputs, odd)
            pointers = [each.data_ptr() for each in (weight, copy, pairs, rows)]
            kernel(len(pairs), *weight.shape, self._group["lr"], *pointers)
        # A weight that was changed otherwise has no copy any more.
        self._rounded = copies
        self._found.clear()


_factors: ContextVar[_Factors | None] = ContextVar("factors", default=None)


@contextmanager
def factored(optimizer: Optimizer) -> Iterator[None]:
    """Let dense layers under autocast leave their gradients to the optimizer's next step, if that is plain SGD."""
    if not is_plain_sgd(optimizer):
        yield
        return
    factors = _Factors(optimizer)
    hook = optimizer.register_step_post_hook(lambda *_: factors.descend())
    token = _factors.set(factors)
    try:
        yield
    finally:
        _factors.reset(token)
        hook.remove()


def factored_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`F.linear` under autocast whose weight gets no `.grad`, but is changed by the step that `factored` knows of.

    Args:
        inputs: (rows, features).
        weight: (units, features), float32.
        bias: (units,) or None.

    Returns:
        (rows, units), bfloat16; None where torch's own operator is to be taken: outside of `factored`, for layers of
        few weights, for processors without products of bfloat16.
    """
    factors = _factors.get()
    if factors is None or not (torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
        return None
    if torch.get_autocast_dtype("cpu") != torch.bfloat16:
        return None
    fits = inputs.ndim == 2 and len(inputs) <= _MOST_ROWS and weight.numel() >= _LEAST_WEIGHTS
    plain = weight.is_contiguous() and weight.dtype == torch.float32 and weight.requires_grad
    if not (fits and plain) or inputs.device.type != "cpu":
        return None
    if (kernel := _kernel(weight.shape[1])) is None:
        return None
    keep = functools.partial(factors.keep, kernel, weight)
    outputs: Tensor = _Linear.apply(inputs, weight, bias, factors.rounded(weight), keep)  # type: ignore[no-untyped-call]
    return outputs


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rounded: Tensor,
        keep: Callable[[Tensor, Tensor], None],
    ) -> Tensor:
        rows = inputs.bfloat16().contiguous()
        ctx.save_for_backward(rows, rounded)
        ctx.keep, ctx.dtype = keep, inputs.dtype
        return F.linear(rows, rounded, None if bias is None else bias.bfloat16())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows, rounded = ctx.saved_tensors
        ctx.keep(slopes, rows)
        d_inputs = (slopes @ rounded).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        d_bias = slopes.sum(0, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        return d_inputs, None, d_bias, None, None


@functools.cache
def _kernel(features: int) -> Kernel | None:
    if not multiplies_bfloat16():
        return None
    from weights.descent_kernel import LANES, descent

    return None if features % LANES else descent()
