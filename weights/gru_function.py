"""A GRU over a whole sequence, with its gradients written out.

Autograd over a loop of steps would multiply each step's weight gradient on its own. Here the inputs
of all steps are projected by one product, each step works in place on slices of preallocated
buffers, and the loop backwards only carries the state's gradient: it leaves the gradients of all
pre-activations in one buffer, from which each weight gradient is one product over time and batch.

Sequences are time-major, (time, batch, features), so that a step is one slice. Gates are in torch's
order r, z, n along the last dimension.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# The width of the blocks in which `StepProduct` lays out its factor, and when that pays. Measured
# with AVX-512 and MKL in float32: at 1024 units and a batch of 8 a product takes 0.6 of the time.
BLOCK = 32
BLOCKED_FROM_STEPS = 16
BLOCKED_FROM_VALUES = 2**19


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
    the factor into the layout it computes with. So the factor is cut once into blocks of columns,
    each contiguous, and a step is a batch of products by narrow blocks. Where that does not pay, a
    step is a plain product.

    Args:
        factor: (inner, columns), in any layout.
        steps: How many products there will be.
        batch: How many rows each has.
    """

    def __init__(self, factor: Tensor, steps: int, batch: int) -> None:
        inner, columns = factor.shape
        self.factor = factor
        self.product: Tensor | None = None
        if (
            factor.device.type == "cpu"
            and steps >= BLOCKED_FROM_STEPS
            and batch > 1
            and columns % BLOCK == 0
            and factor.numel() >= BLOCKED_FROM_VALUES
        ):
            self.factor = factor.reshape(inner, -1, BLOCK).transpose(0, 1).contiguous()
            self.product = factor.new_empty(columns // BLOCK, batch, BLOCK)

    def add_to(self, total: Tensor, rows: Tensor) -> Tensor:
        """Adds `rows` (batch, inner) times the factor to `total` (batch, columns), in place."""
        if self.product is None:
            return total.addmm_(rows, self.factor)
        torch.bmm(rows.expand(len(self.factor), -1, -1), self.factor, out=self.product)
        total.view(len(total), -1, BLOCK).add_(self.product.transpose(0, 1))
        return total


def gru_forward(
    x: Tensor,
    state: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    spec: GRUSpec,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs a GRU over a sequence; the formulas are `weights.recurrent.GRU`'s.

    Args:
        x: Inputs, (time, batch, input).
        state: The state before the first step, (batch, units).
        weight_ih: (3 * units, input).
        weight_hh: (3 * units, units).
        bias_ih: (3 * units,) or None.
        bias_hh: (3 * units,) or None; only with `spec.reset_after`.
        spec: The cell.

    Returns:
        The states before and after each step, (time + 1, batch, units); the gates r, z, n,
        (time, batch, 3 * units); what the candidate's recurrent weights take, r * h, or with
        `reset_after` what they give, (time, batch, units).
    """
    steps, batch, _ = x.shape
    units = state.shape[1]
    gate, candidate = ACTIVATIONS[spec.gate].function, ACTIVATIONS[spec.candidate].function
    gates = F.linear(x, weight_ih, bias_ih)
    inner = x.new_zeros(steps, batch, units)
    if bias_hh is not None:
        gates[..., : 2 * units] += bias_hh[: 2 * units]
        inner += bias_hh[2 * units :]
    states = x.new_empty(steps + 1, batch, units)
    states[0] = state
    to_gates = StepProduct(weight_hh[: 2 * units].t(), steps, batch)
    to_candidate = StepProduct(weight_hh[2 * units :].t(), steps, batch)
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
        x: Tensor,
        state: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        spec: GRUSpec,
    ) -> Tensor:
        """Takes `gru_forward`'s arguments and gives (time, batch, units)."""
        states, gates, inner = gru_forward(x, state, weight_ih, weight_hh, bias_ih, bias_hh, spec)
        ctx.save_for_backward(x, weight_ih, weight_hh, states, gates, inner)
        ctx.spec = spec
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
        x, weight_ih, weight_hh, states, gates, inner = ctx.saved_tensors
        spec: GRUSpec = ctx.spec
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

        from_gates = StepProduct(weight_hh[: 2 * units], steps, batch)
        from_candidate = StepProduct(weight_hh[2 * units :], steps, batch)
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
        delta, before, inner = (tensor.flatten(0, 1) for tensor in (delta, before, inner))
        grad_hh = torch.empty_like(weight_hh)
        torch.mm(delta[:, : 2 * units].t(), before, out=grad_hh[: 2 * units])
        grad_bias = delta.sum(0)
        grad_bias_hh = None
        if spec.reset_after:
            delta_q = delta_q.flatten(0, 1)
            torch.mm(delta_q.t(), before, out=grad_hh[2 * units :])
            grad_bias_hh = torch.cat([grad_bias[: 2 * units], delta_q.sum(0)])
        else:
            torch.mm(delta[:, 2 * units :].t(), inner, out=grad_hh[2 * units :])
        return (
            (delta @ weight_ih).view_as(x) if ctx.needs_input_grad[0] else None,
            grad_h,
            delta.t() @ x.flatten(0, 1),
            grad_hh,
            grad_bias if ctx.needs_input_grad[4] else None,
            grad_bias_hh if ctx.needs_input_grad[5] else None,
            None,
        )
