"""A GRU's recurrence over a whole sequence, with its gradients written out.

Autograd over a loop of steps would multiply each step's weight gradient on its own. Here each step
works in place on slices of preallocated buffers, and the loop backwards only carries the state's
gradient: it leaves the gradients of all pre-activations in one buffer, from which the weights'
gradient is one product over time and batch. Inputs come projected already, all steps at once.

Sequences are time-major, (time, batch, features), so that a step is one slice. Gates are in torch's
order r, z, n along the last dimension.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Where it pays to lay out a step's factor beforehand: from so many steps and values.
PACKED_FROM_STEPS = 16
PACKED_FROM_VALUES = 2**19


class Activation(NamedTuple):
    """An activation function whose derivative needs only its output."""

    function_: Callable[[Tensor], Tensor]
    """Overwrites its argument, and gives it back."""

    backward: Callable[[Tensor, Tensor, Tensor], object]
    """(gradient of the output, the output, result): the argument's gradient, into `result`."""


def _hard_sigmoid(slope: float) -> Activation:
    """clip(slope * x + 0.5, 0, 1)."""

    def backward(grad: Tensor, y: Tensor, result: Tensor) -> None:
        torch.mul(grad, (y > 0) & (y < 1), out=result).mul_(slope)

    return Activation(lambda x: x.mul_(slope).add_(0.5).clamp_(0, 1), backward)


_aten = torch.ops.aten
ACTIVATIONS = {
    "tanh": Activation(torch.tanh_, lambda g, y, out: _aten.tanh_backward(g, y, grad_input=out)),
    "sigmoid": Activation(
        torch.sigmoid_, lambda g, y, out: _aten.sigmoid_backward(g, y, grad_input=out)
    ),
    "relu": Activation(torch.relu_, lambda g, y, out: torch.mul(g, y > 0, out=out)),
    "linear": Activation(lambda x: x, lambda g, y, out: out.copy_(g)),
    # Keras 2 and Keras 3 give the name hard_sigmoid to different functions.
    "hard_sigmoid": _hard_sigmoid(0.2),
    "hard_sigmoid_v3": _hard_sigmoid(1 / 6),
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
        large = steps >= PACKED_FROM_STEPS and factor.numel() >= PACKED_FROM_VALUES
        self.linear: Callable[..., Tensor] | None = None
        if large and _packs(factor, dtype):
            self.factor = torch.ops.mkldnn._reorder_linear_weight(self.factor.t(), batch)
            self.linear = torch.ops.mkldnn._linear_pointwise.default

    def of(self, rows: Tensor) -> Tensor:
        """`rows` (batch, inner) times the factor: (batch, columns) in `rows`' own dtype."""
        given = rows.to(self.dtype)
        if self.linear is None:
            return (given @ self.factor).to(rows.dtype)
        return self.linear(given, self.factor, None, "none", [], "").to(rows.dtype)

    def add_to(self, total: Tensor, rows: Tensor) -> Tensor:
        """Adds `of(rows)` to `total` (batch, columns), in place."""
        if self.linear is None and self.dtype == total.dtype:
            return total.addmm_(rows, self.factor)
        return total.add_(self.of(rows))


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
    gate_, candidate_ = ACTIVATIONS[spec.gate].function_, ACTIVATIONS[spec.candidate].function_
    inner = state.new_zeros(steps, batch, units)
    if bias_hh is not None:
        gates[..., : 2 * units] += bias_hh[: 2 * units]
        inner += bias_hh[2 * units :]
    states = state.new_empty(steps + 1, batch, units)
    states[0] = state
    to_gates = StepProduct(weight_hh[: 2 * units].t(), steps, batch, dtype)
    to_candidate = StepProduct(weight_hh[2 * units :].t(), steps, batch, dtype)
    for before, after, rz, (r, z, n), q in zip(
        states[:-1], states[1:], gates[..., : 2 * units], _by_step(gates), inner, strict=True
    ):
        gate_(to_gates.add_to(rz, before))
        if spec.reset_after:
            n.addcmul_(r, to_candidate.add_to(q, before))
        else:
            to_candidate.add_to(n, torch.mul(r, before, out=q))
        torch.lerp(candidate_(n), before, z, out=after)
    return states, gates, inner


def _by_step(gates: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """r, z and n of each step."""
    return zip(*gates.chunk(3, dim=2), strict=True)


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
        gate, candidate = ACTIVATIONS[spec.gate].backward, ACTIVATIONS[spec.candidate].backward
        delta = torch.empty_like(gates)
        delta_rz = delta[..., : 2 * units]
        # What the candidate's recurrent weights are multiplied by, forwards and backwards.
        delta_q = torch.empty_like(inner) if spec.reset_after else delta[..., 2 * units :]
        from_gates = StepProduct(weight_hh[: 2 * units], steps, batch, dtype)
        from_candidate = StepProduct(weight_hh[2 * units :], steps, batch, dtype)
        grad_h = grad[-1]
        earlier = (torch.zeros_like(grad_h), *grad[:-1])
        steps_of = (states[:-1], gates[..., : 2 * units], _by_step(gates), inner)
        grads_of = (delta_rz, _by_step(delta), delta_q)
        for early, before, rz, (r, z, n), q, d_rz, (dr, dz, dn), dq in reversed(
            [*zip(earlier, *steps_of, *grads_of, strict=True)]
        ):
            candidate(torch.addcmul(grad_h, grad_h, z, value=-1), n, dn)
            torch.sub(before, n, out=dz).mul_(grad_h)
            grad_before = torch.addcmul(early, grad_h, z)
            if spec.reset_after:
                torch.mul(dn, q, out=dr)
                from_candidate.add_to(grad_before, torch.mul(dn, r, out=dq))
            else:
                grad_rh = from_candidate.of(dn)
                torch.mul(grad_rh, before, out=dr)
                grad_before.addcmul_(grad_rh, r)
            gate(d_rz, rz, d_rz)
            grad_h = from_gates.add_to(grad_before, d_rz)

        # One row for each step of each sequence.
        before, inner, delta_q = (t.flatten(0, 1) for t in (states[:-1], inner, delta_q))
        rows = before.to(dtype)
        grad_hh = rows.new_empty(weight_hh.shape)
        torch.mm(delta_rz.flatten(0, 1).to(dtype).t(), rows, out=grad_hh[: 2 * units])
        rows_q = rows if spec.reset_after else inner.to(dtype)
        torch.mm(delta_q.to(dtype).t(), rows_q, out=grad_hh[2 * units :])
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = torch.cat([delta_rz.sum((0, 1)), delta_q.sum(0)])
        return delta, grad_h, grad_hh.to(weight_hh), grad_bias, None, None
