"""Clients' softmax regressions, each trained by one call: the arithmetic of `client.update` without its operations."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from client.crew import Crew
from client.data import Client
from client.stacked import Stacked
from client.update import Result
from tasks.metrics import ACCURACY, classification_loss
from tasks.task import Task
from weights.layers import Dense, linear
from weights.named import NamedArrays
from weights.optimizers import is_plain_sgd, make_optimizer
from weights.processor import registers


class _Kernel(NamedTuple):
    """The kernel, and floats in a row of scores."""

    run: Callable[..., None]
    columns: int


class Regression(NamedTuple):
    """A softmax regression under plain SGD.

    Attributes:
        weight: State name of the weights, (classes, features).
        bias: State name of the bias, (classes,).
        rate: The learning rate.
        accuracies: Names of the task's metrics, all of which are accuracies.
    """

    weight: str
    bias: str
    rate: float
    accuracies: Sequence[str]

    def train(
        self, initial: NamedArrays, clients: Sequence[Client], crew: Crew
    ) -> list[Result] | None:
        """What `client.together.update_together` returns.

        None where torch has to do it: a machine without the kernel (`weights.regression_kernel`), weights or examples
        that are not float32, targets that are no classes.
        """
        classes, features = initial[self.weight].shape
        single = all(initial[name].dtype == np.float32 for name in (self.weight, self.bias))
        kernel = _kernel(features, classes) if single else None
        if kernel is None or not all(_fits(client, features, classes) for client in clients):
            return None
        results: list[Result] = [({}, {}) for _ in clients]

        def train(place: int) -> None:
            results[place] = self._trained(clients[place], initial, kernel)

        batches = [client.chosen.num_batches for client in clients]
        busy = [place for place, count in enumerate(batches) if count]
        crew.spread(train, sorted(busy, key=lambda place: -batches[place]))
        return results

    def _trained(self, client: Client, initial: NamedArrays, kernel: _Kernel) -> Result:
        """The update and the metric sums of a client that has a batch."""
        examples, (chosen, size) = client.prepared, client.chosen
        steps, rows = client.chosen.num_batches, len(chosen)
        weights, biases = (initial[name].copy(order="C") for name in (self.weight, self.bias))
        outcomes = np.empty((3, rows), np.float32)
        scores = np.empty((size, kernel.columns), np.float32)
        data = (examples.inputs.numpy(), examples.targets.numpy(), chosen)
        arrays = (weights, biases, *data, outcomes, scores)
        kernel.run(steps, size, rows, self.rate, *[array.ctypes.data for array in arrays])
        totals, gaps, right = outcomes
        loss = (np.log(totals) + gaps).sum(dtype=np.float64)
        correct = [float(right.sum()), float(rows)]
        sums = {"loss": [float(loss), float(rows)], **dict.fromkeys(self.accuracies, correct)}
        sums |= {"num_examples": [float(rows)], "num_batches": [float(steps)]}
        update = {self.weight: weights, self.bias: biases}
        return {name: initial[name] - trained for name, trained in update.items()}, sums


def regression(task: Task, layers: Stacked, client_optimizer: str) -> Regression | None:
    """The model, if it is a softmax regression: one dense layer, and the cross-entropy of what it gives."""
    *shaping, (prefix, dense) = layers.layers
    rate = _plain_rate(client_optimizer)
    flat = all(isinstance(layer, nn.Flatten | nn.Identity) for _, layer in shaping)
    if not isinstance(dense, Dense | nn.Linear) or dense.bias is None:
        return None
    straight = isinstance(dense, nn.Linear) or dense.activation is linear
    learns = dense.weight.requires_grad and dense.bias.requires_grad
    known = task.loss is classification_loss and all(m is ACCURACY for m in task.metrics.values())
    if rate is None or not (flat and straight and learns and known):
        return None
    return Regression(f"{prefix}weight", f"{prefix}bias", rate, [*task.metrics])


@functools.lru_cache(maxsize=16)
def _plain_rate(client_optimizer: str) -> float | None:
    """The learning rate of SGD without momentum; None for other optimizers."""
    optimizer = make_optimizer(client_optimizer, [torch.zeros(1)], "client optimizer")
    return float(optimizer.defaults["lr"]) if is_plain_sgd(optimizer) else None


def _fits(client: Client, features: int, classes: int) -> bool:
    """Whether the kernel can read a client's examples."""
    inputs, targets = client.prepared.inputs, client.prepared.targets
    if inputs.dtype != torch.float32 or targets.dtype != torch.int64 or not len(inputs):
        return not len(inputs)
    flat = inputs[0].numel() == features and inputs.is_contiguous() and targets.is_contiguous()
    return flat and bool(targets.numpy().view(np.uint64).max() < classes)  # a negative one is huge


@functools.cache
def _kernel(features: int, classes: int) -> _Kernel | None:
    vectors = registers()
    if vectors is None:
        return None
    from weights.regression_kernel import columns, training

    return _Kernel(training(features, classes, vectors), columns(classes, vectors))
