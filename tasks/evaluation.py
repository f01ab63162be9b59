"""Evaluation of a model on batches: the same arithmetic on a client and on the server."""

from collections.abc import Iterable

import torch
from torch import nn

from tasks.metrics import MetricSums, Sums
from tasks.stream import Batch
from tasks.task import Task
from weights.recurrent import reset_states


@torch.no_grad()
def evaluate(task: Task, model: nn.Module, batches: Iterable[Batch]) -> Sums:
    """Metric sums of a model over batches, recurrent states starting from zero; empty if none came."""
    model.eval()
    reset_states(model)
    sums = MetricSums(task.metrics)
    for batch in batches:
        outputs = model(batch.inputs)
        sums.add(outputs, task.mean_loss(outputs, batch), batch)
    return sums.sums()
