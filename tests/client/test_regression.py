"""Softmax regressions by the kernel, against the same clients trained one by one by torch."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client import regression as module
from client.crew import Crew
from client.data import Client
from client.regression import _kernel, regression
from client.stacked import stacked
from client.together import update_together
from client.update import Result, local_update
from settings.schema import Settings
from tasks.catalogue import load_task
from tasks.metrics import ACCURACY, MeanLoss, MeanMetric
from tasks.stream import Chosen, Prepared, Stream
from tasks.task import Task
from weights.keras import build_model
from weights.named import arrays_of, is_finite
from weights.processor import registers

if registers() is None:
    pytest.skip("no llvmlite, or a processor without AVX2", allow_module_level=True)

TASK = load_task("emnist_lr")


def crew(workers: int = 2) -> Crew:
    made = Crew()
    made.arrange(Settings(workers=workers))
    return made


def linear(features: int = 13, classes: int = 3) -> nn.Module:
    torch.manual_seed(features + classes)
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


def made(sizes: Sequence[int], features: int, classes: int, batch: int) -> list[Client]:
    stream = Stream(batch, local_epochs=3, shuffle_buffer=20)
    clients = []
    for index, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(index)
        inputs = torch.randn(size, features, generator=generator)
        targets = torch.randint(classes, (size,), generator=generator)
        rng = np.random.default_rng(index)
        clients.append(Client(Prepared(inputs, targets), stream.chosen(size, rng)))
    return clients


def by_kernel(
    model: nn.Module, clients: list[Client], workers: int = 2, optimizer: str = "sgd:lr=0.5"
) -> list[Result] | None:
    layers = stacked(model)
    assert layers is not None
    found = regression(TASK, layers, optimizer)
    assert found is not None
    return found.train(initial(model), clients, crew(workers))


def initial(model: nn.Module) -> dict[str, Any]:
    return {name: array.copy() for name, array in arrays_of(model).items()}


def one_by_one(model: nn.Module, clients: list[Client], batch: int) -> list[Result]:
    weights = initial(model)
    stream = Stream(batch)
    results = []
    for client in clients:
        batches = [
            stream._gather(client.prepared, torch.from_numpy(c)) for c in client.chosen.batches()
        ]
        results.append(local_update(TASK, model, weights, batches, "sgd:lr=0.5"))
    return results


@pytest.mark.parametrize(
    ("features", "classes", "batch"),
    [(13, 3, 7), (784, 10, 20), (5, 40, 1), (33, 16, 33), (1, 1, 2), (9, 700, 11)],
)
def test_the_kernel_trains_as_torch(features: int, classes: int, batch: int) -> None:
    model = linear(features, classes)
    clients = made((23, 0, 7, 1, 40), features, classes, batch)
    got = by_kernel(model, clients)
    assert got is not None
    wanted = one_by_one(model, clients, batch)
    for (update, sums), (other, other_sums) in zip(got, wanted, strict=True):
        assert list(update) == list(other)
        for name, array in other.items():
            np.testing.assert_allclose(update[name], array, rtol=1e-5, atol=1e-5)
        assert list(sums) == list(other_sums)
        for name, values in other_sums.items():
            np.testing.assert_allclose(sums[name], values, rtol=1e-5)
    assert got[1] == ({}, {})
    # A MetricRecord takes no lists of mixed kinds.
    assert {type(value) for sums in got[0][1].values() for value in sums} == {float}


def test_the_same_bits_on_any_number_of_threads() -> None:
    model, clients = linear(), made((23, 7, 1, 40, 16), 13, 3, 4)
    first, *others = [by_kernel(model, clients, workers) for workers in (1, 2, 5)]
    assert first is not None
    for other in others:
        assert other is not None
        for (update, sums), (same, same_sums) in zip(first, other, strict=True):
            assert all(np.array_equal(update[name], same[name]) for name in update)
            assert sums == same_sums


@pytest.mark.parametrize("classes", [3, 40])
def test_of_equal_scores_the_first_class_is_taken(classes: int) -> None:
    """As argmax does it, here and in Keras: before the first step all scores of a new model are zero."""
    model = linear(13, classes)
    clients = made((600, 600), 13, classes, 300)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        [*model.parameters()][1][classes // 2 :] = 1.0
    clients[0] = replace(clients[0], chosen=Chosen(clients[0].chosen.batches()[0], 300))
    got = by_kernel(model, clients)
    assert got is not None
    wanted = one_by_one(model, clients, 300)
    assert [sums["accuracy"] for _, sums in got] == [sums["accuracy"] for _, sums in wanted]
    assert 0 < got[0][1]["accuracy"][0] < 300


def test_a_learning_rate_of_zero() -> None:
    got = by_kernel(linear(), made((9,), 13, 3, 4), optimizer="sgd:lr=0.0")
    assert got is not None
    [(update, sums)] = got
    assert not any(array.any() for array in update.values())
    assert sums["num_examples"] == [27.0]


def test_scores_beyond_what_an_exponential_holds() -> None:
    model, clients = linear(), made((30,), 13, 3, 10)
    for client in clients:
        client.prepared.inputs.mul_(100)
    got = by_kernel(model, clients)
    assert got is not None
    [(update, sums)], [(other, other_sums)] = got, one_by_one(model, clients, 10)
    for name, array in other.items():
        np.testing.assert_allclose(update[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
    np.testing.assert_allclose(sums["loss"], other_sums["loss"], rtol=1e-4)


def test_an_input_that_is_not_a_number_spoils_the_update() -> None:
    model, clients = linear(), made((30, 30), 13, 3, 10)
    clients[0].prepared.inputs[3, 2] = float("nan")
    got = by_kernel(model, clients)
    assert got is not None
    assert [is_finite(update) for update, _ in got] == [False, True]
    assert np.isnan(got[0][1]["loss"][0])
    assert all(np.isnan(array).all() for array in got[0][0].values())


def test_an_example_that_is_in_no_batch_spoils_nothing() -> None:
    """Though a batch of 4 is filled up to a block."""
    model, [client] = linear(), made((30,), 13, 3, 4)
    client.prepared.inputs[0] = float("nan")
    client = replace(client, chosen=Chosen(np.arange(1, 10), 4))
    got = by_kernel(model, [client])
    assert got is not None
    [(update, _)], [(other, _)] = got, one_by_one(model, [client], 4)
    for name, array in other.items():
        np.testing.assert_allclose(update[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("features", "classes", "batch"), [(784, 10, 6), (5, 9, 7)])
def test_with_the_registers_of_avx2(features: int, classes: int, batch: int) -> None:
    from weights.regression_kernel import columns, training

    vectors = registers({"avx2": True, "fma": True})
    assert vectors is not None
    kernel = training(features, classes, vectors, cpu="haswell", target="+avx2,+fma")
    [client] = made((41,), features, classes, batch)
    model = linear(features, classes)
    weights, biases = initial(model).values()
    chosen = client.chosen.rows
    outcomes = np.zeros((3, len(chosen)), np.float32)
    scores = np.zeros((batch, columns(classes, vectors)), np.float32)
    data = [client.prepared.inputs.numpy(), client.prepared.targets.numpy()]
    arrays = [weights, biases, *data, chosen, outcomes, scores]
    counts = client.chosen.num_batches, batch, len(chosen)
    kernel(*counts, 0.5, *[array.ctypes.data for array in arrays])
    before = initial(model)
    [(update, sums)] = one_by_one(model, [client], batch)
    for trained, (name, wanted) in zip((weights, biases), update.items(), strict=True):
        np.testing.assert_allclose(before[name] - trained, wanted, rtol=1e-5, atol=1e-5)
    assert outcomes[2].sum() == sums["accuracy"][0]


def test_examples_that_the_kernel_does_not_read_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    [client] = made((9,), 13, 3, 4)
    examples = client.prepared
    others = [
        Prepared(examples.inputs.double(), examples.targets),
        Prepared(examples.inputs, examples.targets.int()),
        Prepared(examples.inputs, examples.targets + 1),  # a class that is none
        Prepared(examples.inputs, examples.targets - 1),
        Prepared(examples.inputs[:, :12], examples.targets),
        Prepared(examples.inputs[:, :12].contiguous(), examples.targets),
        Prepared(torch.cat([examples.inputs] * 2, 1)[:, ::2], examples.targets),
    ]
    for other in others:
        assert by_kernel(model, [client, replace(client, prepared=other)]) is None
    assert by_kernel(linear().double(), [client]) is None
    with monkeypatch.context() as without:
        without.setattr(module, "registers", lambda: None)
        _kernel.cache_clear()
        assert by_kernel(model, [client]) is None
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    _kernel.cache_clear()
    assert by_kernel(model, [client]) is None
    _kernel.cache_clear()


def test_a_class_that_is_none_is_an_error() -> None:
    model = linear()
    [client] = made((9,), 13, 3, 4)
    wrong = replace(client, prepared=Prepared(client.prepared.inputs, client.prepared.targets + 1))
    with pytest.raises(IndexError):
        update_together(TASK, model, initial(model), [wrong, client], "sgd:lr=0.5", crew())


def dense(**config: Any) -> nn.Module:
    config = {"name": "dense", "units": 3, "activation": "linear"} | config
    layers: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "config": {"name": "in", "batch_input_shape": [None, 13]}},
        {"class_name": "Dense", "config": config},
    ]
    whole = {"class_name": "Sequential", "config": {"name": "m", "layers": layers}}
    model: nn.Module = build_model(whole)
    return model


def frozen(name: str) -> nn.Module:
    model = linear()
    model.get_parameter(f"1.{name}").requires_grad_(False)
    return model


def _hinge(outputs: Tensor, batch: Any) -> Tensor:
    return F.multi_margin_loss(outputs.flatten(0, -2), batch.targets.flatten(), reduction="none")


@pytest.mark.parametrize(
    ("make", "optimizer", "task", "is_one"),
    [
        (linear, "sgd:lr=0.1", TASK, True),
        (dense, "sgd:lr=0.1,momentum=0.0", TASK, True),
        (linear, "sgd:lr=0.1,momentum=0.9", TASK, False),
        (linear, "adam:lr=0.1", TASK, False),
        (linear, "sgd:lr=0.1", replace(TASK, loss=MeanLoss(_hinge)), False),
        (linear, "sgd:lr=0.1", replace(TASK, metrics={"hit": ACCURACY}), True),
        (linear, "sgd:lr=0.1", replace(TASK, metrics={"hinge": MeanMetric(_hinge)}), False),
        (lambda: dense(activation="relu"), "sgd:lr=0.1", TASK, False),
        (lambda: dense(use_bias=False), "sgd:lr=0.1", TASK, False),
        (linear, "sgd:lr=0.1", replace(TASK, metrics={}), True),
        (
            linear,
            "sgd:lr=0.1",
            replace(TASK, metrics={"hit": ACCURACY, "hinge": MeanMetric(_hinge)}),
            False,
        ),
        (lambda: dense(trainable=False), "sgd:lr=0.1", TASK, False),
        (lambda: frozen("weight"), "sgd:lr=0.1", TASK, False),
        (lambda: frozen("bias"), "sgd:lr=0.1", TASK, False),
        (lambda: nn.Sequential(nn.ReLU(), linear()), "sgd:lr=0.1", TASK, False),
        (lambda: nn.Sequential(linear(), nn.Tanh()), "sgd:lr=0.1", TASK, False),
    ],
)
def test_what_is_a_softmax_regression(
    make: Callable[[], nn.Module], optimizer: str, task: Task, is_one: bool
) -> None:
    layers = stacked(make())
    assert layers is not None
    assert (regression(task, layers, optimizer) is not None) == is_one
