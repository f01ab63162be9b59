"""Weights that descend by their gradient's factors, against the formula and against autograd."""

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weights import factored as module
from weights.factored import factored, factored_linear
from weights.layers import Dense
from weights.optimizers import make_optimizer
from weights.processor import multiplies_bfloat16

if not multiplies_bfloat16():
    pytest.skip("a processor without products of bfloat16", allow_module_level=True)

RATE = 0.5
ROWS, FEATURES, UNITS = 20, 1040, 520


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def dense() -> Dense:
    layer = Dense(FEATURES, UNITS, True, F.relu)
    for parameter in layer.parameters():
        parameter.data.copy_(0.1 * draw(*parameter.shape))
    return layer


def step(layer: nn.Module, inputs: Tensor, spec: str = f"sgd:lr={RATE}") -> tuple[Tensor, ...]:
    """Outputs, and the gradient of the inputs, of a step whose loss is the outputs' mean square."""
    optimizer = make_optimizer(spec, layer.parameters(), "client optimizer")
    inputs = inputs.clone().requires_grad_()
    with factored(optimizer):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = layer(inputs)
        outputs.float().square().mean().backward()
        optimizer.step()
    assert inputs.grad is not None
    return outputs.detach(), inputs.grad


@pytest.mark.parametrize("units", [1, 6, 13])
@pytest.mark.parametrize("features", [16, 64, 144])
@pytest.mark.parametrize("pairs", [1, 5])
def test_the_kernel(units: int, features: int, pairs: int) -> None:
    kernel = module._kernel(features)
    assert kernel is not None
    weights, inputs = draw(units + 1, features), draw(2 * pairs, features).bfloat16()
    slopes, copy = draw(2 * pairs, units).bfloat16(), torch.zeros(units + 1, features).bfloat16()
    exact = weights[:units].double() - RATE * slopes.double().mT @ inputs.double()
    after = weights[units].clone()
    paired = slopes.view(pairs, 2, units).mT.contiguous()
    pointers = [each.data_ptr() for each in (weights, copy, paired, inputs)]
    kernel(pairs, units, features, RATE, *pointers)
    torch.testing.assert_close(weights[:units].double(), exact, rtol=0, atol=1e-6 * pairs)
    assert torch.equal(copy[:units], weights[:units].bfloat16())
    assert torch.equal(weights[units], after)
    assert not copy[units].any()


@pytest.mark.parametrize("rows", [ROWS, 7, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_autocasts(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits, but for the layer's own gradients: they are not rounded to bfloat16."""
    inputs = draw(rows, FEATURES).to(dtype)
    ours, torchs, exact = dense(), dense(), dense()
    got = step(ours, inputs)
    assert ours.weight.grad is None
    monkeypatch.setattr(module, "_kernel", lambda features: None)
    wanted = step(torchs, inputs)
    assert torchs.weight.grad is not None
    assert [each.dtype for each in got] == [each.dtype for each in wanted]
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
    slopes = 2 * wanted[0].double() / wanted[0].numel()  # zero where the ReLU's outputs are
    slopes = slopes.bfloat16().double()
    gradient = slopes.mT @ inputs.bfloat16().double()
    exact.weight.data -= RATE * gradient.float()
    assert exact.bias is not None
    exact.bias.data -= RATE * slopes.sum(0).float()
    for name, parameter in exact.named_parameters():
        mine, rounded = ours.get_parameter(name), torchs.get_parameter(name)
        torch.testing.assert_close(mine, parameter, rtol=2e-7, atol=1e-8)
        torch.testing.assert_close(rounded, parameter, rtol=0, atol=5e-4)


@pytest.mark.parametrize("spec", ["sgd:lr=0.5,momentum=0.9", "adam:lr=0.01", "torch.SGD:lr=0.5"])
def test_other_optimizers_get_the_gradient(spec: str) -> None:
    layer = dense()
    before = layer.weight.detach().clone()
    step(layer, draw(ROWS, FEATURES), spec)
    assert layer.weight.grad is not None
    assert not torch.equal(layer.weight, before)


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = dense()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), self.layer(-x)])


class Tied(Twice):
    """A layer's weight is used outside of it too."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + F.linear(x, self.layer.weight)
        return y


@pytest.mark.parametrize("make", [Twice, Tied])
def test_a_weight_in_two_places_gets_both_gradients(
    make: Callable[[], Twice], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [draw(ROWS, FEATURES), draw(ROWS + 1, FEATURES)[:ROWS]]
    ours, torchs, untrained = make(), make(), make()
    got = steps(ours, batches)
    monkeypatch.setattr(module, "_kernel", lambda features: None)
    wanted = steps(torchs, batches)
    assert far(got, wanted) < 0.01
    assert far(steps(untrained, batches[1:]), wanted) > 0.1
    before = make().layer.weight
    assert far(*[(made.layer.weight - before).detach() for made in (ours, torchs)]) < 0.01


def far(one: Tensor, other: Tensor) -> float:
    return float((one - other).float().norm() / other.float().norm())


def test_a_weight_that_torch_has_changed_is_rounded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [draw(rows, FEATURES) for rows in (ROWS, 100, ROWS)]
    got = steps(dense(), batches)
    monkeypatch.setattr(module, "_kernel", lambda features: None)
    assert far(got, steps(dense(), batches)) < 0.01
    assert far(steps(dense(), batches[::2]), got) > 0.1


def steps(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """The last step's outputs."""
    optimizer = make_optimizer("sgd:lr=20.0", model.parameters(), "client optimizer")
    with factored(optimizer):
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16):
                outputs: Tensor = model(batch)
            optimizer.zero_grad()
            outputs.float().square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return outputs.detach()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    layer, inputs = dense(), draw(ROWS, FEATURES)
    inputs[3, 5] = bad
    step(layer, inputs)
    assert not layer.weight.isfinite().all()


def test_where_torchs_operator_is_taken() -> None:
    layer, inputs = dense(), draw(ROWS, FEATURES)
    arguments = (layer.weight, layer.bias)
    optimizer = make_optimizer("sgd:lr=0.5", layer.parameters(), "client optimizer")
    with torch.autocast("cpu", torch.bfloat16):
        assert factored_linear(inputs, *arguments) is None
        with factored(optimizer):
            assert factored_linear(inputs, *arguments) is not None
            assert factored_linear(inputs[None], *arguments) is None
            assert factored_linear(inputs.repeat(4, 1), *arguments) is None
            assert factored_linear(inputs, layer.weight[:100], None) is None
            assert factored_linear(inputs[:, 1:], layer.weight[:, 1:], None) is None
            assert factored_linear(inputs, layer.weight.detach(), None) is None
            with torch.no_grad():
                assert factored_linear(inputs, *arguments) is None
    with factored(optimizer), torch.autocast("cpu", torch.float16):
        assert factored_linear(inputs, *arguments) is None
    with factored(optimizer):
        assert factored_linear(inputs, *arguments) is None


def test_a_machine_without_llvm_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module._kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    layer = dense()
    step(layer, draw(ROWS, FEATURES))
    assert layer.weight.grad is not None
    module._kernel.cache_clear()
