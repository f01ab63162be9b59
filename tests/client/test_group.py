"""Who is trained together, and how many."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from client.data import Client
from client.group import can_join, join
from simulation.grid import InProcessGrid
from tasks.catalogue import load_task
from tasks.metrics import MeanMetric, Metric
from tasks.stream import Batch, Chosen, Prepared

TASK = load_task("emnist_lr")


@pytest.fixture(autouse=True)
def run() -> None:
    """Messages can be made only inside a run."""
    InProcessGrid(ClientApp(), {})


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


class Scaled(nn.Linear):
    """A user's own: that it is also a Linear says nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4))


def own() -> nn.Module:
    return nn.Sequential(nn.Flatten(), Scaled(64, 4))


def hooked() -> nn.Module:
    model = linear()
    model.get_submodule("1").register_forward_hook(lambda layer, inputs, outputs: 2 * outputs)
    return model


def shared() -> nn.Module:
    same = nn.Linear(64, 64)
    return nn.Sequential(nn.Flatten(), same, same)


def large() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5000))


def over_rows() -> nn.Module:
    return nn.Sequential(nn.Flatten(0), nn.Linear(64, 4))


@pytest.mark.parametrize("make", [dropout, normalised, own, hooked, shared, large, over_rows])
def test_other_models_are_trained_one_by_one(make: Callable[[], nn.Module]) -> None:
    assert not can_join(TASK, make(), "sgd:lr=0.1")


@pytest.mark.parametrize(
    ("name", "joins"), [("emnist_lr", True), ("emnist_cnn", False), ("shakespeare", False)]
)
def test_networks_of_tasks(name: str, joins: bool) -> None:
    task = load_task(name)
    assert can_join(task, task.model(), task.client_optimizer) is joins


@pytest.mark.parametrize(("classes", "most"), [(4, 20), (1000, 9)])
def test_a_groups_outputs_are_part_of_its_bytes(classes: int, most: int) -> None:
    """20 clients of 1,000 rows: 1,000 scores each, kept twice, are 8 MB a client."""
    messages = [Message(RecordDict(), 1, MessageType.TRAIN) for _ in range(20)]
    for index, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = str(index)
    rows = Chosen(np.arange(1000), 50)
    data = Prepared(torch.zeros(1000, 2), torch.zeros(1000, dtype=torch.int64))
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, classes))
    group, failed = join(messages[0], messages[1:], lambda _: Client(data, rows), model)
    assert not failed
    assert most - 3 <= len(group) <= most


def test_other_losses_metrics_and_optimizers_are_trained_one_by_one() -> None:
    def loss(outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch.targets)

    model = linear()
    assert can_join(TASK, model, "sgd:lr=0.1")
    assert not can_join(replace(TASK, loss=loss), model, "sgd:lr=0.1")
    own_metric = Metric(lambda outputs, batch: (outputs.sum(), 1.0))
    assert not can_join(replace(TASK, metrics={"own": own_metric}), model, "sgd:lr=0.1")
    assert can_join(
        replace(TASK, metrics={"own": MeanMetric(lambda o, b: o.sum(-1))}), model, "sgd:lr=0.1"
    )
    # Not elementwise, as Adafactor and Muon.
    assert not can_join(TASK, model, "torch.Adafactor")
