"""Local training: the arithmetic of one client in one round."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from client.precision import outputs_of
from tasks.metrics import MetricSums, Sums
from tasks.stream import Batch
from tasks.task import Task
from weights.factored import factored
from weights.named import NamedArrays, arrays_of, load_arrays, trainable_names
from weights.optimizers import make_optimizer
from weights.recurrent import reset_states

Result = tuple[NamedArrays, Sums]
"""What work on one client's batches gives: the model update, which evaluation leaves empty, and metric sums."""


def local_update(
    task: Task,
    model: nn.Module,
    initial: NamedArrays,
    batches: Iterable[Batch],
    client_optimizer: str,
    precision: str = "float32",
) -> Result:
    """Train a model on one client's batches.

    Args:
        task: Gives loss and metrics.
        model: Is overwritten with `initial`, then trained in place.
        initial: The broadcast weights, all state names.
        batches: The client's batches, epochs included.
        client_optimizer: A spec; the optimizer starts afresh, as in TFF.
        precision: See `client.precision.outputs_of`.

    Returns:
        The model update, (initial - trained) for every trainable name, and the metric sums, which
        describe the model during training (before each step), as in TFF. Both are empty if there
        was no batch.
    """
    load_arrays(model, initial, "the broadcast model")
    model.train()
    reset_states(model)
    optimizer = make_optimizer(client_optimizer, model.parameters(), "client optimizer")
    sums = _train(task, model, batches, optimizer, precision)
    if not sums:
        return {}, {}
    trained = arrays_of(model)
    return {name: initial[name] - trained[name] for name in trainable_names(model)}, sums


def _train(
    task: Task, model: nn.Module, batches: Iterable[Batch], optimizer: Optimizer, precision: str
) -> Sums:
    sums = MetricSums(task.metrics)
    with factored(optimizer):
        for batch in batches:
            outputs = outputs_of(model, batch.inputs, precision)
            loss = task.mean_loss(outputs, batch)
            sums.add(outputs, loss, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return sums.sums()
