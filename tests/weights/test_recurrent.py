"""The recurrent layers against torch's own and Keras."""

import itertools
import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from settings.errors import InputError
from weights.keras import KerasModel
from weights.layers import Embedding
from weights.recurrent import GRU, LSTM, reset_states

# Keras's, from how it turns a tensor into an array.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_gru_refuses_second_derivatives() -> None:
    layer = GRU(3, 4)
    x = torch.randn(2, 5, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.backward(grad.sum())


def assert_equals_torch(layer: GRU | LSTM, theirs: nn.GRU | nn.LSTM) -> None:
    """Outputs and gradients; torch's layer gets our parameters, and zeros for a bias we lack."""
    theirs.double()
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
        for name, parameter in theirs.named_parameters():
            ours = getattr(layer, name.removesuffix("_l0"), None)
            parameter.copy_(torch.zeros_like(parameter) if ours is None else ours)
    x = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    mine, other = layer(x), theirs(x)[0]
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    names = [name for name, _ in layer.named_parameters()]
    grad = torch.randn_like(other)
    for ours, expected in zip(
        torch.autograd.grad(mine, [x, *layer.parameters()], grad),
        torch.autograd.grad(other, [x, *(getattr(theirs, f"{n}_l0") for n in names)], grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use_bias", [False, True])
def test_gru_with_reset_after_is_torchs(use_bias: bool) -> None:
    theirs = nn.GRU(5, 4, bias=use_bias, batch_first=True)
    assert_equals_torch(GRU(5, 4, reset_after=True, use_bias=use_bias), theirs)


@pytest.mark.parametrize("use_bias", [False, True])
def test_gru_for_gpus(use_bias: bool) -> None:
    layer = GRU(5, 4, reset_after=True, use_bias=use_bias).double()
    x, state = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 3, 5), (3, 4)))
    for ours, fused in zip(layer.run(x, (state,), None), layer.run_fused(x, (state,)), strict=True):
        torch.testing.assert_close(ours, fused, rtol=0, atol=1e-12)


@pytest.mark.parametrize("symbols", [5, 50])
@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_symbols_of_a_table(kind: type[GRU] | type[LSTM], symbols: int) -> None:
    """Two symbols stand in the text more than once; of 50 most do not stand there at all."""
    embedding = Embedding(symbols, 3).double()
    nn.init.normal_(embedding.weight)
    layer = kind(3, 4).double()
    text = torch.tensor([[1, 4, 1, 0, 2], [4, 3, 0, 0, 2]])
    weights = [embedding.weight, *layer.parameters()]
    grad = torch.randn(2, 5, 4, dtype=torch.float64)
    model = KerasModel({"embedding": embedding, "recurrent": layer}, "{}")
    features = layer(embedding(text))
    for outputs in (layer(text, embedding.weight), model(text), model(text.float())):
        torch.testing.assert_close(outputs, features, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            torch.autograd.grad(outputs, weights, grad),
            torch.autograd.grad(features, weights, grad, retain_graph=True),
            rtol=1e-10,
            atol=1e-10,
        )


@pytest.mark.parametrize("use_bias", [False, True])
def test_lstm_is_torchs(use_bias: bool) -> None:
    theirs = nn.LSTM(5, 4, bias=use_bias, batch_first=True)
    assert_equals_torch(LSTM(5, 4, use_bias=use_bias), theirs)


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


def keras_pair(
    keras: Any, cell: str, activation: str, gate: str, **options: Any
) -> tuple[nn.Module, Any]:
    """Our layer and Keras's with the same random weights, for inputs (3, time, 5)."""
    # Keras 3 no longer has Keras 2's hard_sigmoid.
    keras_gate = {
        "hard_sigmoid": lambda x: keras.ops.clip(0.2 * x + 0.5, 0, 1),
        "hard_sigmoid_v3": "hard_sigmoid",
    }.get(gate, gate)
    names: dict[str, Any] = {"activation": activation, "recurrent_activation": gate}
    if cell != "lstm":
        options["reset_after"] = cell == "gru_after"
    ours = (LSTM if cell == "lstm" else GRU)(5, 4, **names, **options)
    kind = keras.layers.LSTM if cell == "lstm" else keras.layers.GRU
    theirs = kind(4, activation=activation, recurrent_activation=keras_gate, **options)
    order = [0, 1, 2, 3] if cell == "lstm" else [1, 0, 2]
    theirs.build((3, None, 5))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)

    def in_keras_order(parameter: Tensor) -> Tensor:
        gates = parameter.detach().chunk(len(order))
        return torch.cat([gates[index] for index in order])

    weights = [in_keras_order(ours.weight_ih).T, in_keras_order(ours.weight_hh).T]
    biases = [bias for name, bias in ours.named_parameters() if name.startswith("bias")]
    if len(biases) == 2:
        weights.append(torch.stack([in_keras_order(bias) for bias in biases]))
    elif biases:
        weights.append(in_keras_order(biases[0]))
    theirs.set_weights([weight.numpy() for weight in weights])
    return ours, theirs


def assert_same_output(keras: Any, ours: nn.Module, theirs: Any, x: Tensor) -> None:
    expected = torch.as_tensor(
        keras.ops.convert_to_numpy(theirs(keras.ops.convert_to_tensor(x.numpy())))
    )
    torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["gru_before", "gru_after", "lstm"])
@pytest.mark.parametrize("gate", ["sigmoid", "hard_sigmoid", "hard_sigmoid_v3"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_equals_keras(keras: Any, cell: str, gate: str, activation: str) -> None:
    x = torch.randn(3, 7, 5)
    for values in itertools.product([False, True], repeat=3):
        options = dict(zip(("use_bias", "return_sequences", "go_backwards"), values, strict=True))
        assert_same_output(keras, *keras_pair(keras, cell, activation, gate, **options), x)


@pytest.mark.parametrize("cell", ["gru_before", "gru_after", "lstm"])
def test_equals_keras_when_stateful(keras: Any, cell: str) -> None:
    ours, theirs = keras_pair(keras, cell, "tanh", "sigmoid", stateful=True, return_sequences=True)
    for steps in (4, 1):
        assert_same_output(keras, ours, theirs, torch.randn(3, steps, 5))
    reset_states(ours)
    theirs.reset_state()
    assert_same_output(keras, ours, theirs, torch.randn(3, 2, 5))


STATEFUL: dict[str, Callable[[], GRU | LSTM]] = {
    "gru": lambda: GRU(5, 4, stateful=True),
    "lstm": lambda: LSTM(5, 4, stateful=True),
    "lstm_hard_sigmoid": lambda: LSTM(5, 4, stateful=True, recurrent_activation="hard_sigmoid"),
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_carry_over_until_reset(kind: str) -> None:
    layer = STATEFUL[kind]()
    x = torch.randn(2, 9, 5)
    whole = layer(x)
    model = nn.Sequential(nn.Identity(), layer)
    for _ in range(2):
        reset_states(model)
        parts = torch.cat([layer(x[:, :4]), layer(x[:, 4:5]), layer(x[:, 5:])], dim=1)
        torch.testing.assert_close(parts, whole)
    # Through three calls, each with a graph of its own.
    torch.autograd.grad(parts.sum(), layer.weight_hh)
    assert not torch.equal(layer(x), whole)


@pytest.mark.parametrize("kind", STATEFUL)
def test_states_are_constants_outside_the_state_dict(kind: str) -> None:
    layer = STATEFUL[kind]()
    x = torch.randn(2, 3, 5, requires_grad=True)
    names = {"weight_ih", "weight_hh", "bias_ih"}
    layer(x)
    assert set(layer.state_dict()) == names == {name for name, _ in layer.named_parameters()}
    assert not list(layer.buffers())
    later = layer(torch.randn(2, 3, 5))
    (grad,) = torch.autograd.grad(later.sum(), x, allow_unused=True)
    assert grad is None


def test_batch_size_is_fixed_until_reset() -> None:
    layer = GRU(5, 4, stateful=True)
    layer(torch.randn(3, 2, 5))
    with pytest.raises(InputError, match="3 sequences got a batch of 2: call reset_states"):
        layer(torch.randn(2, 2, 5))
    reset_states(layer)
    layer(torch.randn(2, 2, 5))


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize(("steps", "batch"), [(6, 3), (1, 1)])
def test_no_grad_gives_the_same_numbers(reset_after: bool, steps: int, batch: int) -> None:
    layer = GRU(5, 4, reset_after=reset_after)
    x = torch.randn(batch, steps, 5)
    outputs = layer(x)
    assert outputs.requires_grad
    with torch.no_grad():
        assert torch.equal(layer(x), outputs)


@pytest.mark.parametrize("layer", [GRU(5, 4), GRU(5, 4, reset_after=True), LSTM(5, 4)])
def test_functional_call(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 5)
    doubled = {name: (2 * p).detach().requires_grad_() for name, p in layer.named_parameters()}
    outputs = torch.func.functional_call(layer, doubled, (x,))
    grads = torch.autograd.grad(outputs.sum(), list(doubled.values()))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    expected = layer(x)
    torch.testing.assert_close(outputs, expected)
    for grad, other in zip(
        grads, torch.autograd.grad(expected.sum(), list(layer.parameters())), strict=True
    ):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("kind", [GRU, LSTM])
def test_initial_weights(kind: type[GRU] | type[LSTM]) -> None:
    layer = kind(30, 20)
    limit = (6 / (30 + layer.gates * 20)) ** 0.5
    assert layer.weight_ih.abs().max() <= limit
    assert layer.weight_ih.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)
    torch.testing.assert_close(layer.weight_hh.T @ layer.weight_hh, torch.eye(20))
    assert not layer.bias_ih.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("layer", [GRU(5, 4), LSTM(5, 4)])
def test_pickles(layer: nn.Module) -> None:
    x = torch.randn(2, 3, 5)
    copy = pickle.loads(pickle.dumps(layer))  # noqa: S301
    assert torch.equal(copy(x), layer(x))


def test_unknown_activation() -> None:
    with pytest.raises(InputError, match=r"unknown recurrent activation 'softplus'.*sigmoid"):
        GRU(5, 4, recurrent_activation="softplus")
