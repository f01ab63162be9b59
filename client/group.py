"""Which clients are trained together: what a task must be made of, and how many."""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import cast

from flwr.app import Message
from torch import nn

from client.data import Client, size_of
from client.stacked import Stacked, stacked
from settings.spec import parse_spec
from tasks.metrics import MeanLoss, MeanMetric
from tasks.task import Task
from weights.optimizers import OPTIMIZERS

MOST_PARAMETERS = 2**18
"""Models with more spend their time on arithmetic, and gain nothing."""

MOST_BYTES = 64 * 2**20
"""Of a group: enough that starting an operation costs little, and little beside a process that has torch."""

_ROW, _OUTPUT = 48, 8
"""Bytes for each row of each batch (index, target, mask, share, loss) and for each of its outputs (twice a float32)."""


def can_join(task: Task, model: nn.Module, client_optimizer: str) -> bool:
    """Whether clients of a task can be trained at once, with the result of one-by-one training.

    The loss and the metrics must be means over targets, the optimizer elementwise, the model a chain of
    layers that `client.stacked` knows, and small.
    """
    return (
        isinstance(task.loss, MeanLoss)
        and all(isinstance(metric, MeanMetric) for metric in task.metrics.values())
        and parse_spec(client_optimizer).name in OPTIMIZERS
        and sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS
        and stacked(model) is not None
    )


def join(
    first: Message, peers: Iterable[Message], read: Callable[[Message], Client], model: nn.Module
) -> tuple[dict[str, Client], dict[str, Exception]]:
    """Who is trained together with the client of a message: that one, then peers as they come.

    A client whose data are not like the first one's is left to be trained alone.

    Args:
        first: The message that is being answered.
        peers: Messages to other clients.
        read: A message's client.
        model: It and the examples bound the group.

    Returns:
        Clients by message id, none if the first cannot be trained with others; and what reading others
        raised, for them to fail with when it is their turn.
    """
    group: dict[str, Client] = {}
    failed: dict[str, Exception] = {}
    kinds: set[object] = set()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    row = _ROW + _OUTPUT * cast(Stacked, stacked(model)).units
    fixed = steps = 0
    for message in chain((first,), peers):
        try:
            client = read(message)
        except Exception as error:
            # The first one's own failure, or its time is up.
            if not group or isinstance(error, TimeoutError):
                raise
            failed[message.metadata.message_id] = error
            continue
        kind = _kind(client)
        if kind is None or (group and kind not in kinds):
            if not group:
                break
            continue
        # Examples kept and joined; weights, gradients, two slots and updates; what each batch takes.
        fixed += 2 * size_of(client.prepared) + 5 * 4 * parameters
        steps = max(steps, client.chosen.num_batches)
        if fixed + (len(group) + 1) * steps * client.chosen.size * row > MOST_BYTES:
            break
        kinds.add(kind)
        group[message.metadata.message_id] = client
    return group, failed


def _kind(client: Client) -> object:
    """What clients of one group have in common; None for one that must be trained alone."""
    examples = client.prepared
    if examples.mask is not None or examples.targets.ndim != 1:
        return None
    return examples.inputs.shape[1:], examples.inputs.dtype, examples.targets.dtype
