"""Training many clients at once: the arithmetic of `client.update`, every step for all of them.

Small models spend their time on starting operations, not on arithmetic. Here each operation works on the
stacked weights of many clients. Clients with fewer batches leave the stack when they are done; a short last
batch is filled up with rows that weigh nothing.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from client.crew import Crew
from client.data import Client
from client.regression import regression
from client.stacked import Stacked, stacked
from client.update import Result
from tasks.metrics import MeanLoss, MeanMetric
from tasks.stream import Batch
from tasks.task import Task
from weights.named import NamedArrays, trainable_names
from weights.optimizers import make_optimizer


def update_together(
    task: Task,
    model: nn.Module,
    initial: NamedArrays,
    clients: Sequence[Client],
    client_optimizer: str,
    crew: Crew,
) -> list[Result]:
    """What `client.update.local_update` returns, for each of the clients, to rounding.

    Args:
        task: See `client.group.can_join`.
        model: Says what the layers are; its weights are neither read nor written.
        initial: The broadcast weights, all state names.
        clients: Their examples are of one shape and one dtype, and have one target each and no mask.
        client_optimizer: A spec; see `client.group.can_join`.
        crew: On whose threads.
    """
    layers = cast(Stacked, stacked(model))
    if (small := regression(task, layers, client_optimizer)) is not None:
        results = small.train(initial, clients, crew)
        if results is not None:
            return results
    return crew.alone(lambda: _stacked(task, model, initial, clients, client_optimizer))


def _stacked(
    task: Task,
    model: nn.Module,
    initial: NamedArrays,
    clients: Sequence[Client],
    client_optimizer: str,
) -> list[Result]:
    # Longest first, so that those that are done leave from the end.
    batches = [client.chosen.num_batches for client in clients]
    order = sorted(range(len(clients)), key=lambda index: -batches[index])
    order = [index for index in order if batches[index]]
    results: list[Result] = [({}, {}) for _ in clients]
    if not order:
        return results
    schedule = _Schedule([clients[index] for index in order])
    training = _Training(task, model, initial, len(order), client_optimizer)
    counted = training.run(schedule)
    updates = training.updates(initial)
    for place, index in enumerate(order):
        update = {name: array[place] for name, array in updates.items()}
        results[index] = update, {name: values[place] for name, values in counted.items()}
    return results


class _Schedule:
    """All batches of all clients: rows of the joined examples, (steps, clients, batch)."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._inputs = torch.cat([client.prepared.inputs for client in clients])
        targets = torch.cat([client.prepared.targets for client in clients])
        self.batches = [client.chosen.num_batches for client in clients]
        size = max(client.chosen.size for client in clients)
        rows = np.zeros((len(clients), self.batches[0], size), np.int64)
        mask = np.zeros(rows.shape, np.bool_)
        first = 0
        for place, client in enumerate(clients):
            last = client.chosen.num_batches - 1
            chosen = client.chosen.rows + first
            short = chosen[last * size :]
            # Rows of the batch's own fill it up: they are finite where the batch is.
            rows[place, last] = short[0]
            if last:
                rows[place, :last] = chosen[: last * size].reshape(last, -1)
            rows[place, last, : len(short)] = short
            mask[place, :last] = True
            mask[place, last, : len(short)] = True
            first += len(client.prepared)
        self._rows = torch.from_numpy(np.ascontiguousarray(rows.swapaxes(0, 1)))
        self.mask = torch.from_numpy(np.ascontiguousarray(mask.swapaxes(0, 1)))
        self.targets = targets[self._rows]
        # One memory for all steps' inputs: fresh pages would cost more than the copy.
        self._memory = self._inputs.new_empty(len(clients) * size, *self._inputs.shape[1:])
        self.shares = self.mask / self.mask.sum(-1, keepdim=True).clamp(min=1)

    def active(self, step: int) -> int:
        """Clients that have a batch in this step: the first so many."""
        return sum(count > step for count in self.batches)

    def batch(self, step: int, active: int) -> Batch:
        """The step's batches, (clients, batch, ...); the inputs hold until the next step."""
        rows = self._rows[step, :active]
        inputs = self._memory[: rows.numel()]
        torch.index_select(self._inputs, 0, rows.reshape(-1), out=inputs)
        shaped = inputs.view(*rows.shape, *inputs.shape[1:])
        return Batch(shaped, self.targets[step, :active], self.mask[step, :active])


class _Training:
    """Stacked weights and their optimizer."""

    def __init__(
        self, task: Task, model: nn.Module, initial: NamedArrays, clients: int, optimizer: str
    ) -> None:
        self._loss = cast(MeanLoss, task.loss)
        self._metrics = cast(Mapping[str, MeanMetric], task.metrics)
        self._layers = cast(Stacked, stacked(model))
        shared = {name: torch.from_numpy(array)[None] for name, array in initial.items()}
        self._trained = {
            name: shared[name].repeat(clients, *[1] * (shared[name].ndim - 1))
            for name in trainable_names(model)
        }
        self._frozen = {name: array for name, array in shared.items() if name not in self._trained}
        self._leaves = [weight.detach().requires_grad_() for weight in self._trained.values()]
        self._optimizer = make_optimizer(optimizer, self._leaves, "client optimizer")

    def run(self, schedule: _Schedule) -> dict[str, list[list[float]]]:
        """Train to the end; the metric sums, by name and client."""
        outputs: list[tuple[Tensor, Tensor]] = []
        active = schedule.mask.shape[1]
        weights = self._weights(active)
        for step in range(schedule.mask.shape[0]):
            if schedule.active(step) < active:
                active = schedule.active(step)
                self._leaves = _narrow(self._optimizer, active)
                weights = self._weights(active)
            batch = schedule.batch(step, active)
            scores = self._layers(batch.inputs, weights)
            losses = self._loss.losses(scores, batch)
            gradients = _gradients(losses, schedule.shares[step, :active], self._leaves)
            for leaf, gradient in zip(self._leaves, gradients, strict=True):
                leaf.grad = gradient
            self._optimizer.step()
            outputs.append((scores.detach(), losses.detach()))
        return self._sums(outputs, schedule)

    def _weights(self, active: int) -> dict[str, Tensor]:
        """What the first so many clients' models are made of, by state name."""
        frozen = {name: w.expand(active, *w.shape[1:]) for name, w in self._frozen.items()}
        return dict(zip(self._trained, self._leaves, strict=True)) | frozen

    def _sums(
        self, outputs: list[tuple[Tensor, Tensor]], schedule: _Schedule
    ) -> dict[str, list[list[float]]]:
        """The metric sums over all steps' scores and losses, by name and client."""
        shape = schedule.mask.shape
        everything = outputs[0][0].new_zeros(*shape, outputs[0][0].shape[-1])
        every_loss = everything.new_zeros(shape)
        for step, (scores, losses) in enumerate(outputs):
            everything[step, : len(scores)] = scores
            every_loss[step, : len(losses)] = losses
        batch = Batch(everything, schedule.targets, schedule.mask)
        examples = schedule.mask.sum((0, 2), dtype=torch.float64)
        values = {"loss": every_loss}
        values |= {name: metric.values(everything, batch) for name, metric in self._metrics.items()}
        sums = {}
        for name, value in values.items():
            total = value.where(schedule.mask, 0).sum((0, 2), dtype=torch.float64)
            sums[name] = torch.stack([total, examples], 1).tolist()
        sums["num_examples"] = examples[:, None].tolist()
        sums["num_batches"] = [[float(count)] for count in schedule.batches]
        return sums

    def updates(self, initial: NamedArrays) -> NamedArrays:
        """(initial - trained) by name, (clients, ...) each."""
        return {name: initial[name] - weight.numpy() for name, weight in self._trained.items()}


def _gradients(losses: Tensor, shares: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those of the clients' mean losses, added up: a client's weights have a part in its own alone.

    `torch.autograd.grad(losses, leaves, shares)`, which would import sympy (a second) to look at `shares`.
    """
    engine = torch.autograd.Variable._execution_engine
    found: tuple[Tensor, ...] = engine.run_backward(
        (losses,), (shares,), False, False, tuple(leaves), False, False
    )
    return found


def _narrow(optimizer: Optimizer, active: int) -> list[Tensor]:
    """Let an optimizer go on with the first so many clients: new leaves in the old ones' memory."""
    [group] = optimizer.param_groups
    leaves = [leaf.detach()[:active].requires_grad_() for leaf in group["params"]]
    for before, after in zip(group["params"], leaves, strict=True):
        slots = optimizer.state.pop(before, {})
        optimizer.state[after] = {
            key: slot[:active] if isinstance(slot, Tensor) and slot.shape == before.shape else slot
            for key, slot in slots.items()
        }
    group["params"] = leaves
    return leaves
