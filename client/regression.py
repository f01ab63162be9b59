"""Clients' softmax regressions, each trained by one call: the arithmetic of `client.update` without its operations."""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.crew import Crew, Result
from client.data import Client
from client.stacked import Stacked
from tasks.metrics import MeanMetric, Sums, classification_loss
from tasks.stream import Batch
from tasks.task import Task
from weights.layers import Dense, linear
from weights.named import NamedArrays
from weights.optimizers import SGD, make_optimizer

Floats = npt.NDArray[np.float32]


class _Kernel(NamedTuple):
    """The kernel, rows in one of its blocks, and floats in a row of scores."""

    run: Callable[..., None]
    rows: int
    columns: int


class Regression(NamedTuple):
    """A softmax regression under plain SGD.

    Attributes:
        weight: State name of the weights, (classes, features).
        bias: State name of the bias, (classes,).
        rate: The learning rate.
    """

    weight: str
    bias: str
    rate: float

    def train(
        self, task: Task, initial: NamedArrays, clients: Sequence[Client], crew: Crew
    ) -> list[Result] | None:
        """What `client.cohort.update_together` returns.

        None where torch has to do it: a machine without the kernel (`weights.regression_kernel`), examples that are not
        float32, targets that are no classes.
        """
        classes, features = initial[self.weight].shape
        kernel = _kernel(features, classes)
        if kernel is None or not all(_fits(client, features, classes) for client in clients):
            return None
        busy = [client for client in clients if client.chosen]
        if not busy:
            return [({}, {}) for _ in clients]
        start = np.zeros((features + 1, kernel.columns), np.float32)
        start[:-1, :classes] = initial[self.weight].T
        start[-1] = -np.inf
        start[-1, :classes] = initial[self.bias]
        weights, scores = _trained(busy, start, kernel, self.rate, crew)
        updates = {
            self.weight: initial[self.weight] - weights[:, :-1, :classes].swapaxes(1, 2),
            self.bias: initial[self.bias] - weights[:, -1, :classes],
        }
        sums = iter(enumerate(_sums(task, busy, scores[:, :classes])))
        return [_result(updates, *next(sums)) if client.chosen else ({}, {}) for client in clients]


def regression(task: Task, layers: Stacked, client_optimizer: str) -> Regression | None:
    """The model, if it is a softmax regression: one dense layer, and the cross-entropy of what it gives."""
    *shaping, (prefix, dense) = layers.layers
    optimizer = make_optimizer(client_optimizer, [torch.zeros(1)], "client optimizer")
    plain = type(optimizer) is SGD and not optimizer.defaults["momentum"]
    flat = all(isinstance(layer, nn.Flatten | nn.Identity) for _, layer in shaping)
    if not isinstance(dense, Dense | nn.Linear) or dense.bias is None:
        return None
    straight = isinstance(dense, nn.Linear) or dense.activation is linear
    learns = dense.weight.requires_grad and dense.bias.requires_grad
    if not (plain and flat and straight and learns) or task.loss is not classification_loss:
        return None
    return Regression(f"{prefix}weight", f"{prefix}bias", optimizer.defaults["lr"])


def _fits(client: Client, features: int, classes: int) -> bool:
    """Whether the kernel can read a client's examples."""
    inputs, targets = client.prepared.inputs, client.prepared.targets
    if inputs.dtype != torch.float32 or targets.dtype != torch.int64 or not len(inputs):
        return not len(inputs)
    flat = inputs[0].numel() == features and inputs.is_contiguous() and targets.is_contiguous()
    return flat and int(targets.min()) >= 0 and int(targets.max()) < classes


def _trained(
    clients: Sequence[Client], start: Floats, kernel: _Kernel, rate: float, crew: Crew
) -> tuple[Floats, Floats]:
    """Each client's weights after all its batches, and the scores of every row before its step, in order."""
    # What a batch holds at most: a client may have less than that, and then one batch.
    size = max(len(client.chosen[0]) for client in clients)
    blocks = -(-size // kernel.rows)
    steps = [len(client.chosen) for client in clients]
    rows = np.empty((sum(steps), blocks * kernel.rows), np.int64)
    shares = np.zeros(rows.shape, np.float32)
    ends = [*accumulate(steps)]
    for client, end, count in zip(clients, ends, steps, strict=True):
        last = len(client.chosen[-1])
        flat = np.concatenate(client.chosen)
        whole = flat[: len(flat) - last].reshape(count - 1, size)
        rows[end - count : end - 1, :size] = whole
        shares[end - count : end - 1, :size] = 1 / size
        rows[end - 1, :last] = flat[len(flat) - last :]
        shares[end - 1, :last] = 1 / last
        # Rows of the batch's own fill it up: they are finite where the batch is.
        rows[end - count : end - 1, size:] = whole[:, :1]
        rows[end - 1, last:] = flat[-1]
    rates = shares * np.float32(rate)
    weights = np.tile(start, (len(clients), 1, 1))
    scores = np.empty((*rows.shape, kernel.columns), np.float32)
    slopes = np.empty((len(clients), *scores.shape[1:]), np.float32)

    def train(place: int) -> None:
        examples = clients[place].prepared
        begin = ends[place] - steps[place]
        parts = (rows[begin], rates[begin], scores[begin], slopes[place])
        arrays = [weights[place], examples.inputs.numpy(), examples.targets.numpy(), *parts]
        kernel.run(steps[place], blocks, *[array.ctypes.data for array in arrays])

    crew.spread(train, sorted(range(len(clients)), key=lambda place: -steps[place]))
    return weights, scores[shares > 0]


def _sums(task: Task, clients: Sequence[Client], scores: Floats) -> list[Sums]:
    """Each client's metric sums."""
    chosen = [np.concatenate(client.chosen) for client in clients]
    targets = [
        client.prepared.targets.numpy()[rows] for client, rows in zip(clients, chosen, strict=True)
    ]
    outputs = torch.from_numpy(scores)
    batch = Batch(outputs, torch.from_numpy(np.concatenate(targets)))
    metrics = cast(Mapping[str, MeanMetric], task.metrics)
    # With the rows last in memory, along which torch is faster here.
    columns = Batch(outputs.T.contiguous()[None].mT, batch.targets[None])
    values = {"loss": classification_loss.losses(columns.inputs, columns)[0]}
    values |= {name: metric.values(outputs, batch) for name, metric in metrics.items()}
    counts = [float(len(rows)) for rows in chosen]
    starts = [0, *accumulate(len(rows) for rows in chosen[:-1])]
    totals = {
        name: np.add.reduceat(value.double().numpy(), starts).tolist()
        for name, value in values.items()
    }
    return [
        {name: [total[place], counts[place]] for name, total in totals.items()}
        | {"num_examples": [counts[place]], "num_batches": [float(len(client.chosen))]}
        for place, client in enumerate(clients)
    ]


def _result(updates: NamedArrays, place: int, sums: Sums) -> Result:
    return {name: array[place] for name, array in updates.items()}, sums


@functools.cache
def _kernel(features: int, classes: int) -> _Kernel | None:
    try:
        # Not before there is work for it: to load LLVM takes a while.
        from weights.llvm import registers
        from weights.regression_kernel import layout, training
    except ImportError:
        return None
    vectors = registers()
    if vectors is None:
        return None
    return _Kernel(training(features, classes, vectors), *layout(classes, vectors))
