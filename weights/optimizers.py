"""Optimizers by name, for clients and server alike, with TFF's arithmetic.

They are `torch.optim.Optimizer`s, so that every class of `torch.optim` serves as well (`torch.AdamW:lr=0.01`).
torch's own Adam, Adagrad and RMSprop put epsilon and bias correction elsewhere than TFF does; hence ours.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from settings.errors import InputError
from settings.spec import construct, parse_spec


class _TffOptimizer(Optimizer):
    """Checks hyperparameters as TFF does, and walks over the parameters that have gradients."""

    def __init__(self, parameters: Iterable[Tensor], defaults: dict[str, Any]) -> None:
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, but is {value}")
            if name in ("beta_1", "beta_2", "decay") and value >= 1:
                raise ValueError(f"{name} must be less than 1, but is {value}")
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its `.grad`, in place."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, self.state[parameter], group)

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError


def _bias_corrected_rate(state: dict[str, Any], group: dict[str, Any]) -> float:
    """Give lr sqrt(1 - beta_2^t) / (1 - beta_1^t) with t counted from 1: folded in before epsilon."""
    state["step"] = state.get("step", 0) + 1
    correction = math.sqrt(1 - group["beta_2"] ** state["step"])
    return float(group["lr"] * correction / (1 - group["beta_1"] ** state["step"]))


def _slot(state: dict[str, Any], name: str, weight: Tensor, initial: float = 0.0) -> Tensor:
    if name not in state:
        state[name] = torch.full_like(weight, initial)
    slot: Tensor = state[name]
    return slot


class Adam(_TffOptimizer):
    """`tff.learning.optimizers.build_adam` (Kingma and Ba, arXiv 1412.6980).

    m <- m + (g - m)(1 - beta_1); v <- v + (g^2 - v)(1 - beta_2); w <- w - rate m / (sqrt(v) + epsilon).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        )

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        m, v = _slot(state, "accumulator", weight), _slot(state, "preconditioner", weight)
        m.lerp_(gradient, 1 - group["beta_1"])
        v.lerp_(gradient.square(), 1 - group["beta_2"])
        rate = _bias_corrected_rate(state, group)
        weight.addcdiv_(m, v.sqrt().add_(group["epsilon"]), value=-rate)


class Yogi(_TffOptimizer):
    """`tff.learning.optimizers.build_yogi` (Zaheer et al., NeurIPS 2018).

    As Adam, but v <- v + (1 - beta_2) sign(g^2 - v) g^2, and v starts at `initial_preconditioner_value`.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-3,
        initial_preconditioner_value: float = 1e-6,
    ) -> None:
        super().__init__(
            parameters,
            {
                "lr": lr,
                "beta_1": beta_1,
                "beta_2": beta_2,
                "epsilon": epsilon,
                "initial_preconditioner_value": initial_preconditioner_value,
            },
        )

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        m = _slot(state, "accumulator", weight)
        v = _slot(state, "preconditioner", weight, group["initial_preconditioner_value"])
        m.lerp_(gradient, 1 - group["beta_1"])
        squared = gradient.square()
        v.addcmul_((squared - v).sign_(), squared, value=1 - group["beta_2"])
        rate = _bias_corrected_rate(state, group)
        weight.addcdiv_(m, v.sqrt().add_(group["epsilon"]), value=-rate)


class Adagrad(_TffOptimizer):
    """`tff.learning.optimizers.build_adagrad` (Duchi et al., JMLR 2011).

    s <- s + g^2; w <- w - lr g / sqrt(s + epsilon), with epsilon under the root.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        initial_preconditioner_value: float = 0.1,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(
            parameters,
            {
                "lr": lr,
                "initial_preconditioner_value": initial_preconditioner_value,
                "epsilon": epsilon,
            },
        )

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        s = _slot(state, "preconditioner", weight, group["initial_preconditioner_value"])
        s.addcmul_(gradient, gradient)
        weight.addcdiv_(gradient, (s + group["epsilon"]).sqrt_(), value=-group["lr"])


class RMSprop(_TffOptimizer):
    """`tff.learning.optimizers.build_rmsprop`: s <- decay s + (1 - decay) g^2; w <- w - lr g / (sqrt(s) + epsilon)."""

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        decay: float = 0.9,
        epsilon: float = 1e-7,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "decay": decay, "epsilon": epsilon})

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        s = _slot(state, "preconditioner", weight)
        s.lerp_(gradient.square(), 1 - group["decay"])
        weight.addcdiv_(gradient, s.sqrt().add_(group["epsilon"]), value=-group["lr"])


class SGD(_TffOptimizer):
    """`tff.learning.optimizers.build_sgdm`: m <- momentum m + g; w <- w - lr m, or lr (g + momentum m) for Nesterov.

    To the bit what `torch.optim.SGD` gives; that one imports torch's compiler for every step, see below.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.0, nesterov: bool = False
    ) -> None:
        if momentum > 1:
            raise ValueError(f"momentum must be at most 1, but is {momentum}")
        if nesterov and not momentum:
            raise ValueError("nesterov needs a momentum")
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    def _update(
        self, weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if momentum := group["momentum"]:
            buffer = _slot(state, "momentum_buffer", weight).mul_(momentum).add_(gradient)
            gradient = gradient.add(buffer, alpha=momentum) if group["nesterov"] else buffer
        weight.add_(gradient, alpha=-group["lr"])


def is_plain_sgd(optimizer: Optimizer) -> bool:
    """Whether a step is w <- w - lr g and nothing else; a subclass may do anything."""
    return type(optimizer) is SGD and not optimizer.defaults["momentum"]


def _leave_the_compiler_alone() -> None:
    """Keep `Optimizer`'s methods from importing torch._dynamo, half of a process's start, to be left alone by it.

    Each is wrapped in a function that asks dynamo for a version of it which is not compiled, and keeps that
    in `__dynamo_disable`. Nothing here is compiled: the version is the method itself.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            vars(method).setdefault("__dynamo_disable", method)


_leave_the_compiler_alone()


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adagrad": Adagrad,
    "yogi": Yogi,
    "rmsprop": RMSprop,
}


def make_optimizer(spec: str, parameters: Iterable[Tensor], kind: str) -> Optimizer:
    """The optimizer that a spec names, over `parameters`.

    Args:
        spec: `NAME[:key=value,...]` with a name of `OPTIMIZERS`, `torch.CLASS`, or `module:Class`.
        parameters: Updated in place from their `.grad`.
        kind: "client optimizer" or "server optimizer", for error messages.

    Raises:
        InputError: Unknown name or option, or a value out of range.
    """
    if parse_spec(spec).name.startswith("torch."):
        optimizer = construct(spec, _TORCH, kind, parameters)
    else:
        optimizer = construct(spec, OPTIMIZERS, kind, parameters, others=("torch.CLASS",))
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"{kind} {spec!r} is not a torch.optim.Optimizer")
    return optimizer


def _usable(name: str) -> bool:
    """Whether a name of torch.optim is a first-order optimizer class (LBFGS needs a closure)."""
    value = getattr(torch.optim, name)
    return inspect.isclass(value) and issubclass(value, Optimizer) and name not in _UNUSABLE


_UNUSABLE = ("Optimizer", "LBFGS", "SparseAdam")
_TORCH = {f"torch.{name}": getattr(torch.optim, name) for name in filter(_usable, dir(torch.optim))}
