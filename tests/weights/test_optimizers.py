"""Server and client optimizers: TFF's arithmetic, by its formulas and by its own numbers."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from settings.errors import InputError
from settings.spec import parse_spec
from weights.optimizers import OPTIMIZERS, Adam, make_optimizer

# Five steps on two tensors, by TFF 0.87 itself; nesterov, which it lacks, by Keras 2.14.
RECORDED = json.loads((Path(__file__).parents[1] / "data/parity/optimizers.json").read_text())

Values = npt.NDArray[np.float64]


def steps(spec: str) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """The weights after each of the recorded gradients."""
    weights = {name: nn.Parameter(torch.tensor(v)) for name, v in RECORDED["weights"].items()}
    optimizer = make_optimizer(spec, weights.values(), "server optimizer")
    for gradients in RECORDED["gradients"]:
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradients[name])
        optimizer.step()
        yield {name: weight.detach().numpy().copy() for name, weight in weights.items()}


@pytest.mark.parametrize("spec", RECORDED["steps"])
def test_tff_numbers(spec: str) -> None:
    for ours, theirs in zip(steps(spec), RECORDED["steps"][spec], strict=True):
        for name, weight in ours.items():
            np.testing.assert_allclose(weight, theirs[name], rtol=1e-6, atol=1e-6)


def formula(spec: str, w: Values, gradients: list[Values]) -> Iterator[Values]:
    """TFF's documented update rules, written out in float64."""
    name, given = parse_spec(spec).name, parse_spec(spec).options
    nesterov = given.pop("nesterov", "") == "true"
    option = {key: float(value) for key, value in given.items()}
    lr, m = option["lr"], np.zeros_like(w)
    b1, b2 = option.get("beta_1", 0.9), option.get("beta_2", 0.999)
    epsilon = option.get("epsilon", {"yogi": 1e-3}.get(name, 1e-7))
    start = {"adagrad": 0.1, "yogi": 1e-6}.get(name, 0.0)
    v = np.full_like(w, option.get("initial_preconditioner_value", start))
    for t, g in enumerate(gradients, start=1):
        if name == "sgd":
            momentum = option.get("momentum", 0.0)
            m = momentum * m + g
            w = w - lr * (g + momentum * m if nesterov else m)
        elif name == "adagrad":
            v = v + g**2
            w = w - lr * g / np.sqrt(v + epsilon)
        elif name == "rmsprop":
            decay = option.get("decay", 0.9)
            v = decay * v + (1 - decay) * g**2
            w = w - lr * g / (np.sqrt(v) + epsilon)
        else:
            m = b1 * m + (1 - b1) * g
            towards = g**2 - v if name == "adam" else np.sign(g**2 - v) * g**2
            v = v + (1 - b2) * towards
            rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
            w = w - rate * m / (np.sqrt(v) + epsilon)
        yield w


@pytest.mark.parametrize("spec", RECORDED["steps"])
def test_formulas(spec: str) -> None:
    for name, start in RECORDED["weights"].items():
        gradients = [np.array(gradient[name]) for gradient in RECORDED["gradients"]]
        expected = formula(spec, np.array(start), gradients)
        for ours, theirs in zip(steps(spec), expected, strict=True):
            np.testing.assert_allclose(ours[name], theirs, rtol=1e-5, atol=1e-6)


def test_every_optimizer_is_checked() -> None:
    assert {parse_spec(spec).name for spec in RECORDED["steps"]} == set(OPTIMIZERS)


def test_without_gradient_nothing_moves() -> None:
    for name in OPTIMIZERS:
        moving, resting = (nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = make_optimizer(f"{name}:lr=0.1", [moving, resting], "server optimizer")
        moving.grad = torch.ones(2)
        optimizer.step()
        assert (moving < 1).all()
        assert torch.equal(resting, torch.ones(2))


def make(spec: str) -> Any:
    return make_optimizer(spec, [nn.Parameter(torch.zeros(3))], "server optimizer")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("adam:lr=-1", "server optimizer adam: lr must not be negative, but is -1.0"),
        ("adam:lr=0.1,beta_1=1", "beta_1 must be less than 1"),
        ("yogi:lr=0.1,beta_2=1.5", "beta_2 must be less than 1"),
        ("yogi:lr=0.1,epsilon=-1", "epsilon must not be negative"),
        ("adagrad:lr=0.1,initial_preconditioner_value=-0.1", "initial_preconditioner_value"),
        ("rmsprop:lr=0.1,decay=1", "decay must be less than 1"),
        ("sgd:lr=-0.1", "sgd"),
        ("sgd:lr=0.1,momentum=-1", "momentum"),
        ("sgd:lr=0.1,momentum=1.5", "momentum"),
        ("sgd:lr=0.1,nesterov=true", "[Nn]esterov"),
        ("sgd:lr=0.1,nesterov=maybe", "sgd:nesterov must be true or false, not 'maybe'"),
        ("sgd:lr=fast", "sgd:lr must be a number, not 'fast'"),
        ("sgd:lr=nan", "sgd:lr must be a number, not 'nan'"),
        ("adam:lr=nan", "adam:lr must be a number, not 'nan'"),
        ("sgd", "server optimizer sgd needs lr: sgd:lr=..."),
        ("adam:lr=0.1,beta1=0.9", "unknown option of server optimizer adam 'beta1'.*beta_1"),
        ("adm:lr=0.1", "unknown server optimizer 'adm': choose from sgd, adam,"),
        ("AdamW:lr=0.1", "'AdamW': choose from .*rmsprop, torch.CLASS, module:attribute$"),
        ("torch.AdmW:lr=0.1", "unknown server optimizer 'torch.AdmW': .*torch.AdamW"),
        ("torch.LBFGS:lr=0.1", "unknown server optimizer 'torch.LBFGS'"),
        ("torch.Optimizer", "unknown server optimizer 'torch.Optimizer'"),
        ("torch.AdamW:lr=0.1,betas=0.9/x", "torch.AdamW:betas must be numbers as 0.9/0.99"),
        ("torch.AdamW:betas=0.9/1.5", "server optimizer torch.AdamW: .*beta"),
        ("builtins:list", "'builtins:list' is not a torch.optim.Optimizer"),
    ],
)
def test_mistakes(spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(spec)


def test_torch_classes() -> None:
    optimizer = make("torch.AdamW:lr=0.5,betas=0.8/0.95,weight_decay=0.25,amsgrad=true")
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.8, 0.95), 0.25)
    assert group["amsgrad"] is True


def test_module_and_class() -> None:
    assert isinstance(make("weights.optimizers:Adam:lr=0.1"), Adam)


def test_torch_switches_may_be_off() -> None:
    assert make("torch.SGD:lr=0.1,foreach=false").param_groups[0]["foreach"] is False
    assert make("torch.SGD:lr=0.1,foreach=true").param_groups[0]["foreach"] is True
