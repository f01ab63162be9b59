"""Evaluation of the global model: by the clients, or by the server itself."""

from collections.abc import Iterable

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import nn

from server.exchange import exchange
from server.strategy import WeightedFedAvg
from tasks.data import Population, Split
from tasks.evaluation import evaluate
from tasks.metrics import Sums, add_sums, finalize
from tasks.stream import Stream
from tasks.task import Task


def federated_evaluation(
    strategy: WeightedFedAvg, grid: Grid, server_round: int, split: Split, deadline: float
) -> dict[str, float]:
    """Finalized metrics of the strategy's model over the evaluation cohort's own data.

    Empty if no client has a batch. Replies that have not come after `deadline` seconds are done without.

    Raises:
        InputError: Every client failed.
    """
    config = ConfigRecord({"split": split})
    messages = strategy.configure_evaluate(server_round, strategy.arrays, config, grid)
    replies = exchange(grid, messages, deadline)
    metrics = strategy.aggregate_evaluate(server_round, replies)
    strategy.tally.check(f"evaluation after round {server_round}")
    return dict(metrics or {})  # type: ignore[arg-type]


def centralised_evaluation(
    task: Task, model: nn.Module, population: Population, client_ids: Iterable[str], stream: Stream
) -> dict[str, float]:
    """The same metrics computed by the server, client after client, on data that it holds itself."""
    totals: Sums = {}
    rng = np.random.default_rng(0)  # never drawn from: evaluation does not shuffle
    for client_id in filter(population.__contains__, client_ids):
        prepared = task.prepared(client_id, population.examples(client_id))
        add_sums(totals, evaluate(task, model, stream.batches(prepared, rng)))
    return finalize(totals, task.metrics)
