"""A GRU's loops over time, forwards and backwards, and what a step consists of.

TorchScript compiles these functions (`weights.gru_function`), which takes milliseconds and loads no
compiler: torch then runs a whole loop without Python and without its lock, so that parts of a batch,
or clients, work side by side. As Python they do the same (`PYTORCH_JIT=0`), slower.
"""

import torch
from torch import Tensor

ACTIVATIONS = ("tanh", "sigmoid", "relu", "linear", "hard_sigmoid", "hard_sigmoid_v3")
"""Activation functions whose derivative needs only their output."""


def activate_(name: str, x: Tensor) -> Tensor:
    """Overwrites `x` with its activation."""
    if name == "tanh":
        return x.tanh_()
    if name == "sigmoid":
        return x.sigmoid_()
    if name == "relu":
        return x.relu_()
    if name == "linear":
        return x
    return x.mul_(slope(name)).add_(0.5).clamp_(0, 1)


def activation_gradient(name: str, grad: Tensor, y: Tensor, result: Tensor) -> None:
    """Writes the gradient of `activate_`'s argument, from that of its output `y`, into `result`."""
    if name == "tanh":
        torch.ops.aten.tanh_backward(grad, y, grad_input=result)
    elif name == "sigmoid":
        torch.ops.aten.sigmoid_backward(grad, y, grad_input=result)
    elif name == "relu":
        torch.mul(grad, y > 0, out=result)
    elif name == "linear":
        result.copy_(grad)
    else:
        torch.mul(grad, (y > 0) & (y < 1), out=result).mul_(slope(name))


def slope(name: str) -> float:
    """Of clip(slope * x + 0.5, 0, 1): Keras 2 and Keras 3 give one name to different functions."""
    return 0.2 if name == "hard_sigmoid" else 1 / 6


if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]

    def packed_product(rows: Tensor, factor: Tensor) -> Tensor:
        """`rows` times a factor that oneDNN has laid out."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, factor, None, "none", [], "")
        return result

else:

    def packed_product(rows: Tensor, factor: Tensor) -> Tensor:
        """There is none without oneDNN."""
        raise AssertionError


def product(rows: Tensor, factor: Tensor) -> Tensor:
    """`rows` (batch, inner) times `factor` (inner, columns), in the factor's dtype."""
    given = rows.to(factor.dtype)
    if factor.is_mkldnn:
        return packed_product(given, factor)
    return given @ factor


def add_product_(total: Tensor, rows: Tensor, factor: Tensor) -> Tensor:
    """Adds `product(rows, factor)` to `total` (batch, columns)."""
    if not factor.is_mkldnn and factor.dtype == total.dtype:
        return total.addmm_(rows, factor)
    return total.add_(product(rows, factor))


def steps_forward(
    states: Tensor,
    gates: Tensor,
    inner: Tensor,
    to_gates: Tensor,
    to_candidate: Tensor,
    reset_after: bool,
    gate: str,
    candidate: str,
) -> None:
    """Takes all steps; `weights.gru_function.gru_forward` says what the arguments are."""
    units = states.size(2)
    for t in range(gates.size(0)):
        before = states[t]
        rz = gates[t, :, : 2 * units]
        n = gates[t, :, 2 * units :]
        q = inner[t]
        activate_(gate, add_product_(rz, before, to_gates))
        r = rz[:, :units]
        if reset_after:
            n.addcmul_(r, add_product_(q, before, to_candidate))
        else:
            add_product_(n, torch.mul(r, before, out=q), to_candidate)
        torch.lerp(activate_(candidate, n), before, rz[:, units:], out=states[t + 1])


def steps_backward(
    grad: Tensor,
    states: Tensor,
    gates: Tensor,
    inner: Tensor,
    delta: Tensor,
    delta_q: Tensor,
    from_gates: Tensor,
    from_candidate: Tensor,
    reset_after: bool,
    gate: str,
    candidate: str,
) -> Tensor:
    """Goes all steps back; `weights.gru_function.GRUFunction.backward` says what the arguments are."""
    units = states.size(2)
    steps = gates.size(0)
    grad_h = grad[steps - 1]
    for i in range(steps):
        t = steps - 1 - i
        before = states[t]
        rz = gates[t, :, : 2 * units]
        r = rz[:, :units]
        z = rz[:, units:]
        n = gates[t, :, 2 * units :]
        d_rz = delta[t, :, : 2 * units]
        dr = d_rz[:, :units]
        dz = d_rz[:, units:]
        dn = delta[t, :, 2 * units :]
        activation_gradient(candidate, torch.addcmul(grad_h, grad_h, z, value=-1), n, dn)
        torch.sub(before, n, out=dz).mul_(grad_h)
        grad_before = grad_h * z if t == 0 else torch.addcmul(grad[t - 1], grad_h, z)
        if reset_after:
            torch.mul(dn, inner[t], out=dr)
            add_product_(grad_before, torch.mul(dn, r, out=delta_q[t]), from_candidate)
        else:
            grad_rh = product(dn, from_candidate).to(dn.dtype)
            torch.mul(grad_rh, before, out=dr)
            grad_before.addcmul_(grad_rh, r)
        activation_gradient(gate, d_rz, rz, d_rz)
        grad_h = add_product_(grad_before, d_rz, from_gates)
    return grad_h
