"""Many clients trained at once against the same clients trained one by one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client.crew import Crew
from client.data import Client
from client.group import can_join
from client.together import update_together
from client.update import local_update
from settings.schema import Settings
from tasks.catalogue import load_task
from tasks.stream import Batch, Chosen, Prepared, Stream
from weights.keras import build_model
from weights.layers import Activate
from weights.named import arrays_of, is_finite

SIZES = (23, 0, 7, 1, 40, 8, 16, 3)  # with three epochs a last batch of one row too


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": class_name.lower(), **config}}


def keras() -> nn.Module:
    """Pooling, a frozen layer, a layer without bias, activations."""
    layers = [
        layer("InputLayer", batch_input_shape=[None, 8, 8, 1]),
        layer("MaxPooling2D", pool_size=[2, 2]),
        layer("Flatten"),
        layer("Dense", units=7, activation="tanh", use_bias=False),
        {
            "class_name": "Dense",
            "config": {"name": "fixed", "units": 6, "activation": "relu", "trainable": False},
        },
        {"class_name": "Dense", "config": {"name": "out", "units": 4, "activation": "linear"}},
    ]
    model: nn.Module = build_model(
        {"class_name": "Sequential", "config": {"name": "m", "layers": layers}}
    )
    return model


def mlp() -> nn.Module:
    hidden = nn.Sequential(nn.Linear(64, 9), nn.ReLU())
    return nn.Sequential(nn.Flatten(), hidden, nn.Linear(9, 4), nn.Tanh())


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


CREW = Crew()
CREW.arrange(Settings())
TASK = replace(load_task("emnist_lr"), batch_size=8)


def examples(size: int) -> Prepared:
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(size, 8, 8, 1, generator=generator)
    return Prepared(inputs, torch.randint(4, (size,), generator=generator))


@pytest.mark.parametrize("make", [linear, mlp, keras])
@pytest.mark.parametrize(
    "optimizer",
    [
        "sgd:lr=0.1",
        "sgd:lr=0.1,momentum=0.9,nesterov=true",
        "adam:lr=0.01",
        "adagrad:lr=0.1",
        "yogi:lr=0.01",
        "rmsprop:lr=0.01",
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"drop_remainder": True}, {"max_batches": 3, "shuffle_buffer": 0}], ids=str
)
def test_together_is_as_one_by_one(
    make: Callable[[], nn.Module], optimizer: str, options: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    model = make()
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    stream = Stream(**{"batch_size": 8, "local_epochs": 3, "shuffle_buffer": 20} | options)
    prepared = [examples(size) for size in SIZES]
    assert can_join(TASK, model, optimizer)
    clients = [
        Client(data, stream.chosen(len(data), np.random.default_rng(index)))
        for index, data in enumerate(prepared)
    ]
    together = update_together(TASK, model, initial, clients, optimizer, CREW)
    for index, (data, (update, sums)) in enumerate(zip(prepared, together, strict=True)):
        batches = stream.batches(data, np.random.default_rng(index))
        alone, alone_sums = local_update(TASK, model, initial, batches, optimizer)
        assert list(update) == list(alone)
        assert list(sums) == list(alone_sums)
        for name, array in alone.items():
            np.testing.assert_allclose(update[name], array, rtol=1e-5, atol=1e-5)
            assert update[name].dtype == array.dtype
        for name, values in alone_sums.items():
            np.testing.assert_allclose(sums[name], values, rtol=1e-5)
    assert together[1] == ({}, {})


def test_an_example_that_is_not_a_number_spoils_no_other_client() -> None:
    """A short last batch is filled up with rows of its own client."""
    spoilt, sound = examples(16), examples(9)
    spoilt.inputs[0] = torch.nan
    clients = [Client(data, Chosen(np.arange(len(data)), 8)) for data in (spoilt, sound)]
    model = mlp()
    together = update_together(TASK, model, arrays_of(model), clients, "sgd:lr=0.1", CREW)
    assert [is_finite(update) for update, _ in together] == [False, True]


def test_an_activation_over_classes_stays_with_its_row() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), Activate(lambda x: torch.softmax(x, -1)))
    clients = [Client(examples(size), Chosen(np.arange(size), size)) for size in (9, 5)]
    initial = arrays_of(model)
    for client, (update, _) in zip(
        clients,
        update_together(TASK, model, initial, clients, "sgd:lr=1.0", CREW),
        strict=True,
    ):
        batch = Batch(client.prepared.inputs, client.prepared.targets)
        copied = {name: array.copy() for name, array in initial.items()}
        alone, _ = local_update(TASK, model, copied, [batch], "sgd:lr=1.0")
        for name, array in alone.items():
            np.testing.assert_allclose(update[name], array, atol=1e-6)
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(copied[name]))
