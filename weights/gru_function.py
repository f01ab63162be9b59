"""A GRU's recurrence over a whole sequence, with its gradients written out.

Autograd over a loop of steps would multiply each step's weight gradient on its own. Here each step
works in place on slices of preallocated buffers, and the loop backwards only carries the state's
gradient: it leaves the gradients of all pre-activations in one buffer, from which the weights'
gradient is one product over time and batch. Inputs come projected already, all steps at once.

Sequences are time-major, (time, batch, features), so that a step is one slice. Gates are in torch's
order r, z, n along the last dimension.
"""

import functools
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weights.gru_steps import steps_backward, steps_forward
from weights.threads import work_on

# Where it pays to lay out a step's factor beforehand: from so many steps and values.
PACKED_FROM_STEPS = 16
PACKED_FROM_VALUES = 2**19


class GRUSpec(NamedTuple):
    """What distinguishes one GRU cell from another; the activations by name, to be pickled."""

    reset_after: bool
    gate: str
    candidate: str


def step_factor(factor: Tensor, steps: int, batch: int, dtype: torch.dtype) -> Tensor:
    """A factor for the products of one small matrix after the other, a step's each.

    Given a few rows and a factor beyond the cache, a plain product spends most of its time bringing
    the factor into the layout it computes with. So oneDNN lays it out once, where that pays and
    where there is oneDNN (these are the operators behind torch.compile's frozen linear layers).

    Args:
        factor: (inner, columns), in any layout.
        steps: How many products there will be.
        batch: How many rows each has.
        dtype: What to multiply in; sums are float32 or the factor's own.
    """
    large = steps >= PACKED_FROM_STEPS and factor.numel() >= PACKED_FROM_VALUES
    result = factor.to(dtype)
    if large and _packs(factor, dtype):
        result = torch.ops.mkldnn._reorder_linear_weight(result.t(), batch)
    return result


def _packs(factor: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out such a factor on this machine."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if factor.device.type != "cpu" or not available:
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def run_loop(
    loop: Callable[..., Any], sequences: Sequence[Tensor], factors: Sequence[Tensor], spec: GRUSpec
) -> list[Any]:
    """Runs a loop of `weights.gru_steps`: its results, each for a share of the batch, in order.

    A step of a few rows is too short for several threads to share its products. Instead each thread
    of this thread's number takes a share of the sequences through all steps. A share has two rows at
    least: oneDNN multiplies a single one in another order.

    Args:
        loop: Takes `sequences`, `factors` and `spec`'s fields.
        sequences: (time, batch, ...).
        factors: From `step_factor`.
        spec: The cell.
    """
    compiled = _compiled(loop)

    def run(*share: Tensor) -> Any:
        # Without the optimizer: it has nothing to win here, and would make the first calls slow.
        plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with torch.inference_mode(share[0].is_inference()), torch.no_grad(), plain:
            return compiled(*share, *factors, *spec)

    shares = min(torch.get_num_threads(), sequences[0].shape[1] // 2)
    if shares < 2 or not factors[0].is_mkldnn:
        return [run(*sequences)]
    return list(_pool().map(run, *(t.tensor_split(shares, dim=1) for t in sequences)))


@functools.cache
def _compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """`loop` in TorchScript; as it is where torch no longer answers for that."""
    if sys.version_info >= (3, 14):
        return loop
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        compiled: Callable[..., Any] = torch.jit.script(loop)
    return compiled


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """A thread for each core, all of them started, each of which multiplies on its own."""
    cores = os.cpu_count() or 1
    ready = threading.Barrier(cores + 1)

    def start() -> None:
        work_on(1)
        ready.wait()

    pool = ThreadPoolExecutor(cores, "gru", initializer=start)
    for _ in range(cores):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(torch.get_num_threads())  # else threads to come would have one as well
    return pool


def gru_forward(
    projected: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    spec: GRUSpec,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a GRU over a sequence; the formulas are `weights.recurrent.GRU`'s.

    Args:
        projected: The inputs times the input weights, with their bias, (time, batch, 3 * units).
            Its memory is taken over for the gates.
        state: The state before the first step, (batch, units).
        weight_hh: (3 * units, units).
        bias_hh: (3 * units,) or None; only with `spec.reset_after`.
        spec: The cell.
        dtype: What the recurrent products are multiplied in; all else is in `state`'s own.

    Returns:
        The states before and after each step, (time + 1, batch, units); the gates r, z, n,
        (time, batch, 3 * units); what the candidate's recurrent weights take, r * h in `dtype`, or
        with `reset_after` what they give, (time, batch, units).
    """
    gates = projected.contiguous()
    steps, batch, _ = gates.shape
    units = state.shape[1]
    if spec.reset_after:
        inner = state.new_zeros(steps, batch, units)
    else:
        inner = state.new_empty(steps, batch, units, dtype=dtype)
    if bias_hh is not None:
        gates[..., : 2 * units] += bias_hh[: 2 * units]
        inner += bias_hh[2 * units :]
    states = state.new_empty(steps + 1, batch, units)
    states[0] = state
    to_gates = step_factor(weight_hh[: 2 * units].t(), steps, batch, dtype)
    to_candidate = step_factor(weight_hh[2 * units :].t(), steps, batch, dtype)
    run_loop(steps_forward, (states, gates, inner), (to_gates, to_candidate), spec)
    return states, gates, inner


class GRUFunction(torch.autograd.Function):
    """The states after each step that `gru_forward` finds, with their first-order gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        state: Tensor,
        weight_hh: Tensor,
        bias_hh: Tensor | None,
        spec: GRUSpec,
        dtype: torch.dtype,
    ) -> Tensor:
        """Takes `gru_forward`'s arguments and gives (time, batch, units)."""
        states, gates, inner = gru_forward(projected, state, weight_hh, bias_hh, spec, dtype)
        ctx.save_for_backward(weight_hh, states, gates, inner)
        ctx.spec, ctx.dtype = spec, dtype
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Backpropagation through time.

        With h' = z h + (1 - z) n and g the gradient of h', the gradients of the pre-activations are
            dz = g (h - n) s'(z)
            dn = g (1 - z) a'(n)
            dr = (dn Un) h s'(r),     or with `reset_after`, where n takes r q,
            dr = dn q s'(r)           and q's gradient is dn r.
        """
        weight_hh, states, gates, inner = ctx.saved_tensors
        spec: GRUSpec = ctx.spec
        dtype: torch.dtype = ctx.dtype
        steps, batch, units = grad.shape
        delta = torch.empty_like(gates)
        delta_rz = delta[..., : 2 * units]
        # What the candidate's recurrent weights are multiplied by, forwards and backwards.
        delta_q = torch.empty_like(inner) if spec.reset_after else delta[..., 2 * units :]
        from_gates = step_factor(weight_hh[: 2 * units], steps, batch, dtype)
        from_candidate = step_factor(weight_hh[2 * units :], steps, batch, dtype)
        shares = run_loop(
            steps_backward,
            (grad, states, gates, inner, delta, delta_q),
            (from_gates, from_candidate),
            spec,
        )
        grad_h = torch.cat(shares)

        # One row for each step of each sequence.
        before, inner, delta_q = (t.flatten(0, 1) for t in (states[:-1], inner, delta_q))
        rows = before.to(dtype)
        grad_hh = rows.new_empty(weight_hh.shape)
        torch.mm(delta_rz.flatten(0, 1).to(dtype).t(), rows, out=grad_hh[: 2 * units])
        rows_q = rows if spec.reset_after else inner
        torch.mm(delta_q.to(dtype).t(), rows_q, out=grad_hh[2 * units :])
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = torch.cat([delta_rz.sum((0, 1)), delta_q.sum(0)])
        return delta, grad_h, grad_hh.to(weight_hh), grad_bias, None, None
