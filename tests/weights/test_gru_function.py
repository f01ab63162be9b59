"""The GRU's written-out gradients against the plain formula under autograd."""

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weights import gru_function
from weights.gru_function import GRUFunction, GRUSpec

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: torch.clip(0.2 * x + 0.5, 0, 1),
    "hard_sigmoid_v3": lambda x: F.relu6(x + 3) / 6,
}


class Inputs(NamedTuple):
    """What a GRU takes; `GRUFunction` takes the inputs projected."""

    x: Tensor
    state: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


def gru(inputs: Inputs, spec: GRUSpec, dtype: torch.dtype = torch.float64) -> Tensor:
    x, state, weight_ih, weight_hh, bias_ih, bias_hh = inputs
    projected = F.linear(x, weight_ih, bias_ih)
    states: Tensor = GRUFunction.apply(projected, state, weight_hh, bias_hh, spec, dtype)  # type: ignore[no-untyped-call]
    return states


def plain_gru(inputs: Inputs, reset_after: bool, gate: str, candidate: str) -> Tensor:
    s, a = FUNCTIONS[gate], FUNCTIONS[candidate]
    x, h, w, u, b, c = inputs
    (wr, wz, wn), (ur, uz, un) = w.chunk(3), u.chunk(3)
    zero = w.new_zeros(len(w))
    br, bz, bn = (zero if b is None else b).chunk(3)
    cr, cz, cn = (zero if c is None else c).chunk(3)
    outputs = []
    for row in x:
        z = s(row @ wz.T + h @ uz.T + bz + cz)
        r = s(row @ wr.T + h @ ur.T + br + cr)
        recurrent = r * (h @ un.T + cn) if reset_after else (r * h) @ un.T
        n = a(row @ wn.T + bn + recurrent)
        h = z * h + (1 - z) * n
        outputs.append(h)
    return torch.stack(outputs)


def random_inputs(
    steps: int, batch: int, units: int, *, reset_after: bool, use_bias: bool = True
) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.div_(shape[-1] ** 0.5).requires_grad_()

    return Inputs(
        normal(steps, batch, 5),
        normal(batch, units),
        normal(3 * units, 5),
        normal(3 * units, units),
        normal(3 * units) if use_bias else None,
        normal(3 * units) if use_bias and reset_after else None,
    )


def assert_equals_plain(
    inputs: Inputs, reset_after: bool, gate: str = "sigmoid", candidate: str = "tanh"
) -> None:
    spec = GRUSpec(reset_after, gate, candidate)
    ours = gru(inputs, spec)
    plain = plain_gru(inputs, reset_after, gate, candidate)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    # A gradient in the order of a batch-first consumer, as the layers get it.
    grad = torch.randn(plain.transpose(0, 1).shape, dtype=plain.dtype).transpose(0, 1)
    given = [tensor for tensor in inputs if tensor is not None]
    for mine, theirs in zip(
        torch.autograd.grad(ours, given, grad),
        torch.autograd.grad(plain, given, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(("steps", "batch"), [(6, 3), (1, 3), (6, 1), (1, 1)])
def test_gradients_are_autograds(reset_after: bool, use_bias: bool, steps: int, batch: int) -> None:
    inputs = random_inputs(steps, batch, 4, reset_after=reset_after, use_bias=use_bias)
    assert_equals_plain(inputs, reset_after)


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "hard_sigmoid_v3"])
@pytest.mark.parametrize("candidate", ["tanh", "relu", "linear", "sigmoid"])
def test_gradients_of_every_activation(reset_after: bool, gate: str, candidate: str) -> None:
    inputs = random_inputs(5, 3, 4, reset_after=reset_after)
    with torch.no_grad():
        inputs.weight_ih.mul_(5)  # so that some gates saturate
    assert_equals_plain(inputs, reset_after, gate, candidate)


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_lower_precision(
    reset_after: bool, packed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gru_function, "PACKED_FROM_VALUES", 0 if packed else 2**31)
    exact = random_inputs(20, 3, 64, reset_after=reset_after)
    rounded = Inputs._make(
        None if t is None else t.detach().float().requires_grad_() for t in exact
    )
    spec = GRUSpec(reset_after, "sigmoid", "tanh")
    ours, plain = gru(rounded, spec, dtype), plain_gru(exact, reset_after, "sigmoid", "tanh")
    assert ours.dtype == torch.float32
    grad = torch.randn_like(plain)
    results = zip(
        (ours, *torch.autograd.grad(ours, [t for t in rounded if t is not None], grad.float())),
        (plain, *torch.autograd.grad(plain, [t for t in exact if t is not None], grad)),
        strict=True,
    )
    # In bfloat16 both factors of a product and the product itself are rounded, each by half an
    # epsilon at most, once on the way forwards and once backwards. In float32 so is all else.
    epsilon = torch.finfo(dtype).eps
    errors = [((mine - theirs).norm() / theirs.norm()).item() for mine, theirs in results]
    assert 0.01 * epsilon < min(errors) <= max(errors)
    assert max(errors) <= (3 if dtype == torch.bfloat16 else 10) * epsilon


@pytest.mark.parametrize("reset_after", [False, True])
def test_gradients_are_numerical_ones(reset_after: bool) -> None:
    inputs = random_inputs(3, 2, 3, reset_after=reset_after)
    spec = GRUSpec(reset_after, "sigmoid", "tanh")
    tensors = [tensor for tensor in inputs if tensor is not None]
    missing = [None] * (len(inputs) - len(tensors))
    assert torch.autograd.gradcheck(lambda *given: gru(Inputs(*given, *missing), spec), tensors)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_threads_or_torchscript(
    reset_after: bool,
    batch: int,
    dtype: torch.dtype,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = random_inputs(20, batch, 64, reset_after=reset_after)
    given = [None if t is None else t.detach().float().requires_grad_() for t in exact]
    inputs, spec = Inputs._make(given), GRUSpec(reset_after, "sigmoid", "tanh")
    grad = torch.randn(20, batch, 64)
    monkeypatch.setattr(gru_function, "PACKED_FROM_VALUES", 0)
    if not gru_function._packs(grad, dtype):
        pytest.skip("no oneDNN for this dtype on this machine")
    pool = Mock(wraps=gru_function._pool)
    monkeypatch.setattr(gru_function, "_pool", pool)

    def results() -> list[Tensor]:
        ours = gru(inputs, spec, dtype)
        return [ours, *torch.autograd.grad(ours, [t for t in given if t is not None], grad)]

    threads(1)
    alone = results()
    assert not pool.called
    threads(4)
    together = results()
    assert pool.call_count == (2 if batch >= 4 else 0)  # forwards and backwards
    with torch.inference_mode():
        evaluated = gru(inputs, spec, dtype)
    monkeypatch.setattr(gru_function, "_compiled", lambda loop: loop)
    python = results()
    assert torch.equal(evaluated, alone[0])
    assert all(map(torch.equal, together, alone))
    assert all(map(torch.equal, python, alone))


def test_threads_to_come_keep_their_number(threads: Callable[[int], None]) -> None:
    threads(3)
    gru_function._pool.__wrapped__().shutdown()
    numbers: list[int] = []
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *numbers] == [3, 3]
