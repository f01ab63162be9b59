"""Metrics as sums: unfinalized on the clients, added up, and finalized once on the server.

This is what `tff.learning.metrics` calls unfinalized metrics and finalizers.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from settings.errors import InputError, counted
from tasks.stream import Batch

Sums = dict[str, list[float]]

_LOG = logging.getLogger(__name__)

ALWAYS = {"loss": 2, "num_examples": 1, "num_batches": 1}
"""What every client sends, whatever the task's metrics are: name -> how many sums."""


def ratio(sums: Sequence[float]) -> float:
    """First sum over the second; NaN where nothing was counted."""
    return sums[0] / sums[1] if sums[1] else math.nan


@dataclass(frozen=True)
class Metric:
    """A metric in two steps.

    Attributes:
        unfinalized: (model outputs, batch) -> the sums that this batch adds, scalars.
        finalize: The sums over all batches and clients -> the metric's value.
        num_sums: How many sums there are.
    """

    unfinalized: Callable[[Tensor, Batch], Sequence[Tensor | float]]
    finalize: Callable[[Sequence[float]], float] = ratio
    num_sums: int = 2


class MeanMetric(Metric):
    """The mean over the targets that count of a value that each target has.

    A metric of this kind can be counted for many clients in one go, with the clients in front.

    Args:
        values: (model outputs (..., classes), batch) -> one value for each target, in the targets' shape.
    """

    values: Callable[[Tensor, Batch], Tensor]

    def __init__(self, values: Callable[[Tensor, Batch], Tensor]) -> None:
        super().__init__(self._sums)
        object.__setattr__(self, "values", values)

    def _sums(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, float]:
        values = self.values(outputs, batch)
        if batch.mask is not None:
            values = values * batch.mask
        return values.sum(), float(batch.num_targets)


@dataclass(frozen=True)
class MeanLoss:
    """The mean over the targets that count of a loss that each target has; as `MeanMetric`, for `Task.loss`.

    Attributes:
        losses: (model outputs (..., classes), batch) -> one loss for each target, in the targets' shape.
    """

    losses: Callable[[Tensor, Batch], Tensor]

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean, a scalar."""
        losses = self.losses(outputs, batch)
        return losses.mean() if batch.mask is None else losses[batch.mask].mean()


def _correct(outputs: Tensor, batch: Batch) -> Tensor:
    return outputs.argmax(dim=-1) == batch.targets


def _cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    # Outputs of many clients lie in memory with the rows last: along those torch is twice as fast.
    columns = outputs.movedim(-1, 1)
    if columns.is_contiguous():
        return torch.nn.functional.cross_entropy(columns, batch.targets, reduction="none")
    losses = torch.nn.functional.cross_entropy(
        outputs.reshape(-1, outputs.shape[-1]), batch.targets.reshape(-1), reduction="none"
    )
    return losses.view(batch.targets.shape)


ACCURACY = MeanMetric(_correct)
"""Share of targets whose most probable class is right (Keras's SparseCategoricalAccuracy)."""

classification_loss = MeanLoss(_cross_entropy)
"""Mean cross-entropy of logits (..., classes) over the targets (...) that count."""


class MetricSums:
    """Adds up batches: `loss`, the task's metrics, `num_examples` and `num_batches`."""

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self._metrics = metrics
        self._totals: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, outputs: Tensor, loss: Tensor, batch: Batch) -> None:
        """Count one batch; `loss` is the mean over its counted targets, a scalar."""
        weight = float(batch.num_targets)
        self._count("loss", (loss.detach() * weight, weight))
        for name, metric in self._metrics.items():
            values = metric.unfinalized(outputs.detach(), batch)
            if not isinstance(values, Sequence):
                raise InputError(
                    f"metric {name} must give its sums, such as (sum, count), not {values!r}"
                )
            if len(values) != metric.num_sums:
                raise InputError(
                    f"metric {name} gives {counted(len(values), 'sum')}, not {metric.num_sums}: "
                    f"say Metric(..., num_sums={len(values)})"
                )
            self._count(name, values)
        self._count("num_examples", (float(batch.num_examples),))
        self._count("num_batches", (1.0,))

    def _count(self, name: str, values: Sequence[Tensor | float]) -> None:
        # float64: sums of counts stay exact, and stay on the device until they are read.
        summands = [torch.as_tensor(value, dtype=torch.float64) for value in values]
        if any(summand.shape for summand in summands):
            shapes = ", ".join(str([*summand.shape]) for summand in summands)
            raise InputError(
                f"metric {name} must give scalars, its sums over the batch, not shapes {shapes}"
            )
        summand = torch.stack(summands)
        self._totals[name] = self._totals[name] + summand if name in self._totals else summand

    def sums(self) -> Sums:
        """The sums as numbers; empty if no batch was counted."""
        return {name: total.tolist() for name, total in self._totals.items()}


def add_sums(totals: Sums, sums: Mapping[str, Sequence[float]]) -> None:
    """Add one client's sums to the totals, in place.

    Raises:
        ValueError: A metric with another number of sums than the totals have.
    """
    for name, values in sums.items():
        before = totals.get(name, [0.0] * len(values))
        totals[name] = [a + b for a, b in zip(before, values, strict=True)]


def finalize(
    sums: Mapping[str, Sequence[float]], metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """Sums over clients to metric values; empty sums give an empty result.

    NaN, with a warning, is a metric whose `finalize` raises: sums are what clients claim, and none may end a run.
    """
    if not sums:
        return {}
    values = {"loss": ratio(sums["loss"])}
    values |= {name: _finalized(name, metric, sums[name]) for name, metric in metrics.items()}
    counts = {name: int(sums[name][0]) for name in ("num_examples", "num_batches")}
    return {**values, **counts}


def _finalized(name: str, metric: Metric, sums: Sequence[float]) -> float:
    try:
        return float(metric.finalize(sums))
    except Exception as error:
        _LOG.warning("metric %s has no value for the sums %s: %r", name, sums, error)
        return math.nan
