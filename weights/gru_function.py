"""A GRU's recurrence over a whole sequence, with its gradients written out.

Autograd over a loop of steps would multiply each step's weight gradient on its own. Here each step
works in place on slices of preallocated buffers, and the loop backwards only carries the state's
gradient: it leaves the gradients of all pre-activations in one buffer, from which the weights'
gradient is one product over time and batch. Inputs come projected already, all steps at once.

Sequences are time-major, (time, batch, features), so that a step is one slice. Gates are in torch's
order r, z, n along the last dimension.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Where it pays to lay out a step's factor beforehand: from so many steps and values.
PACKED_FROM_STEPS = 16
PACKED_FROM_VALUES = 2**19


class Activation(NamedTuple):
    """An activation function whose derivative needs only its output."""

    function: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    """The derivative, given the function's output."""


def _inside(y: Tensor) -> Tensor:
    """1 where a function between 0 and 1 has not saturated, 0 elsewhere."""
    return ((y > 0) & (y < 1)).to(y.dtype)


ACTIVATIONS = {
    "tanh": Activation(torch.tanh, lambda y: 1 - y * y),
    "sigmoid": Activation(torch.sigmoid, lambda y: y * (1 - y)),
    "relu": Activation(torch.relu, lambda y: (y > 0).to(y.dtype)),
    "linear": Activation(lambda x: x, torch.ones_like),
    # Keras 2 and Keras 3 give the name hard_sigmoid to different functions.
    "hard_sigmoid": Activation(lambda x: (0.2 * x + 0.5).clamp(0, 1), lambda y: 0.2 * _inside(y)),
    "hard_sigmoid_v3": Activation(F.hardsigmoid, lambda y: _inside(y) / 6),
}


class GRUSpec(NamedTuple):
    """What distinguishes one GRU cell from another; the activations by name, to be pickled."""

    reset_after: bool
    gate: str
    candidate: str


class StepProduct:
    """Products of one small matrix after the other, a step's each, by the same large factor.

    Given a few rows and a factor beyond the cache, a plain product spends most of its time bringing
    the factor into the layout it computes with. So oneDNN lays it out once, where that pays and
    where there is oneDNN (these are the operators behind torch.compile's frozen linear layers).

    Args:
        factor: (inner, columns), in any layout.
        steps: How many products there will be.
        batch: How many rows each has.
        dtype: What to multiply in; sums are float32 or the factor's own.
    """

    def __init__(self, factor: Tensor, steps: int, batch: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.factor = factor.to(dtype)
        self.packed = (
            steps >= PACKED_FROM_STEPS
            and factor.numel() >= PACKED_FROM_VALUES
            and _packs(factor, dtype)
        )
        if self.packed:
            self.factor = torch.ops.mkldnn._reorder_linear_weight(self.factor.t(), batch)

    def add_to(self, total: Tensor, rows: Tensor) -> Tensor:
        """Adds `rows` (batch, inner) times the factor to `total` (batch, columns), in place."""
        rows = rows.to(self.dtype)
        if self.packed:
            linear = torch.ops.mkldnn._linear_pointwise
            return total.add_(linear(rows, self.factor, None, "none", [], ""))
        if total.dtype == self.dtype:
            return total.addmm_(rows, self.factor)
        return total.add_(rows @ self.factor)


def _packs(factor: Tensor, dtype: torch.dtype) -> bool:
    """Whether oneDNN lays out such a factor on this machine."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if factor.device.type != "cpu" or not available:
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


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
        (time, batch, 3 * units); what the candidate's recurrent weights take, r * h, or with
        `reset_after` what they give, (time, batch, units).
    """
    gates = projected.contiguous()
    steps, batch, _ = gates.shape
    units = state.shape[1]
    gate, candidate = ACTIVATIONS[spec.gate].function, ACTIVATIONS[spec.candidate].function
    inner = state.new_zeros(steps, batch, units)
    if bias_hh is not None:
        gates[..., : 2 * units] += bias_hh[: 2 * units]
        inner += bias_hh[2 * units :]
    states = state.new_empty(steps + 1, batch, units)
    states[0] = state
    to_gates = StepProduct(weight_hh[: 2 * units].t(), steps, batch, dtype)
    to_candidate = StepProduct(weight_hh[2 * units :].t(), steps, batch, dtype)
    for t in range(steps):
        before, inner_t = states[t], inner[t]
        rz, n = gates[t, :, : 2 * units], gates[t, :, 2 * units :]
        r, z = rz.copy_(gate(to_gates.add_to(rz, before))).chunk(2, dim=1)
        if spec.reset_after:
            n.addcmul_(r, to_candidate.add_to(inner_t, before))
        else:
            to_candidate.add_to(n, torch.mul(r, before, out=inner_t))
        n.copy_(candidate(n))
        torch.lerp(n, before, z, out=states[t + 1])
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
        All factors but g and dn Un are known before the loop, and are multiplied for all steps.
        """
        weight_hh, states, gates, inner = ctx.saved_tensors
        spec: GRUSpec = ctx.spec
        dtype: torch.dtype = ctx.dtype
        steps, batch, units = grad.shape
        before = states[:-1]
        r, z, n = gates.chunk(3, dim=2)

        delta = torch.empty_like(gates)
        delta_rz = delta[..., : 2 * units]
        delta_r, delta_z, delta_n = delta.chunk(3, dim=2)
        delta_rz.copy_(ACTIVATIONS[spec.gate].slope(gates[..., : 2 * units]))
        delta_z.mul_(before - n)
        torch.mul(1 - z, ACTIVATIONS[spec.candidate].slope(n), out=delta_n)
        if spec.reset_after:
            delta_r.mul_(inner).mul_(delta_n)
            delta_q = delta_n * r
        else:
            delta_r.mul_(before)

        from_gates = StepProduct(weight_hh[: 2 * units], steps, batch, dtype)
        from_candidate = StepProduct(weight_hh[2 * units :], steps, batch, dtype)
        grad_h = grad[-1].clone()
        earlier = (torch.zeros_like(grad_h), *grad[:-1].unbind())
        for t in reversed(range(steps)):
            grad_before = torch.addcmul(earlier[t], grad_h, z[t])
            if spec.reset_after:
                delta[t].view(batch, 3, units).mul_(grad_h.unsqueeze(1))
                from_candidate.add_to(grad_before, delta_q[t].mul_(grad_h))
            else:
                delta[t, :, units:].view(batch, 2, units).mul_(grad_h.unsqueeze(1))
                grad_rh = from_candidate.add_to(torch.zeros_like(grad_h), delta_n[t])
                delta_r[t].mul_(grad_rh)
                grad_before.addcmul_(grad_rh, r[t])
            grad_h = from_gates.add_to(grad_before, delta_rz[t])

        # One row for each step of each sequence.
        rows = delta.flatten(0, 1).to(dtype)
        before = before.flatten(0, 1).to(dtype)
        if spec.reset_after:
            rows_n, inner = delta_q.flatten(0, 1).to(dtype), before
        else:
            rows_n, inner = rows[:, 2 * units :], inner.flatten(0, 1).to(dtype)
        grad_hh = torch.cat([rows[:, : 2 * units].t() @ before, rows_n.t() @ inner])
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = torch.cat([delta_rz.sum((0, 1)), delta_q.sum((0, 1))])
        return delta, grad_h, grad_hh.to(weight_hh), grad_bias, None, None
