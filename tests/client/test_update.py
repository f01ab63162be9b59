"""Local training: one client's arithmetic."""

import numpy as np
import torch
from torch import nn

from client.update import local_update
from tasks.metrics import ACCURACY, classification_loss
from tasks.stream import Batch, Prepared
from tasks.task import Task
from weights.named import arrays_of, fingerprint
from weights.recurrent import GRU

SGD = "sgd:lr=0.5"


def task_of(model: nn.Module) -> Task:
    def prepare(examples: object) -> Prepared:
        raise NotImplementedError

    return Task("toy", lambda: model, prepare, classification_loss, metrics={"accuracy": ACCURACY})


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Batch(torch.randn(4, 3, generator=generator), torch.randint(2, (4,), generator=generator))
        for _ in range(count)
    ]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_two_steps_by_hand() -> None:
    model = linear()
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    made = batches(2)
    update, sums = local_update(task_of(model), model, initial, made, SGD)
    w, b = (initial[name].astype(np.float64) for name in ("weight", "bias"))
    loss = correct = 0.0
    for batch in made:
        x, y = batch.inputs.numpy(), batch.targets.numpy()
        scores = x @ w.T + b
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        loss -= np.log(p[range(4), y]).sum()
        correct += (p.argmax(axis=1) == y).sum()
        gradient = (p - np.eye(2)[y]) / 4
        w, b = w - 0.5 * gradient.T @ x, b - 0.5 * gradient.sum(axis=0)
    np.testing.assert_allclose(update["weight"], initial["weight"] - w, atol=1e-6)
    np.testing.assert_allclose(update["bias"], initial["bias"] - b, atol=1e-6)
    # The metrics are of the model before each step, not after the last.
    np.testing.assert_allclose(sums["loss"], [loss, 8], rtol=1e-6)
    assert sums["accuracy"] == [correct, 8]
    assert (sums["num_examples"], sums["num_batches"]) == ([8], [2])


def test_it_starts_from_the_broadcast_weights_and_a_fresh_optimizer() -> None:
    model = linear()
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    before = fingerprint(initial)
    momentum = "sgd:lr=0.5,momentum=0.9"
    first, _ = local_update(task_of(model), model, initial, batches(3), momentum)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    second, _ = local_update(task_of(model), model, initial, batches(3), momentum)
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint(initial) == before


def test_without_a_batch_there_is_no_update() -> None:
    model = linear()
    assert local_update(task_of(model), model, arrays_of(linear()), [], SGD) == ({}, {})


def test_only_what_is_trained_is_sent() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    model.eval()
    update, _ = local_update(task_of(model), model, initial, batches(2), "adam:lr=0.1")
    assert list(update) == ["1.weight", "1.bias", "3.weight", "3.bias"]
    assert model.training
    after = arrays_of(model)
    np.testing.assert_array_equal(after["0.weight"], initial["0.weight"])
    assert not np.array_equal(after["1.running_mean"], initial["1.running_mean"])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = GRU(3, 5, stateful=True)
        self.dense = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.dense(self.gru(x))
        return result


def test_a_state_lasts_for_one_clients_batches() -> None:
    torch.manual_seed(0)
    model = Recurrent()
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    made = [
        Batch(torch.randn(4, 6, 3), torch.randint(2, (4, 6))),
        Batch(torch.randn(4, 6, 3), torch.randint(2, (4, 6))),
    ]
    frozen = "sgd:lr=0.0"
    both, sums = local_update(task_of(model), model, initial, made, frozen)
    again, sums_again = local_update(task_of(model), model, initial, made, frozen)
    assert sums == sums_again
    assert fingerprint(both) == fingerprint(again)
    apart = [local_update(task_of(model), model, initial, [batch], frozen)[1] for batch in made]
    assert sums["loss"][0] != sum(part["loss"][0] for part in apart)
    # Another number of sequences: the next client's batches need not be as large.
    smaller = [Batch(torch.randn(2, 6, 3), torch.randint(2, (2, 6)))]
    assert local_update(task_of(model), model, initial, smaller, SGD)[1]["num_examples"] == [2]
