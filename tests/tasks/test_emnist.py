"""The digit tasks: the tutorials' models and inputs."""

import numpy as np
import pytest
import torch

from settings.errors import InputError
from tasks.catalogue import load_task
from tasks.stream import Batch
from weights.named import arrays_of

EXAMPLES = {
    "pixels": np.linspace(0, 1, 2 * 28 * 28, dtype=np.float32).reshape(2, 28, 28),
    "label": np.array([3, 9], np.int32),
}


def test_softmax_regression_starts_at_zero() -> None:
    task = load_task("emnist_lr")
    model = task.model()
    assert {name: array.shape for name, array in arrays_of(model).items()} == {
        "dense.weight": (10, 784),
        "dense.bias": (10,),
    }
    assert not any(array.any() for array in arrays_of(model).values())
    prepared = task.prepare(EXAMPLES)
    assert prepared.inputs.shape == (2, 784)
    np.testing.assert_array_equal(prepared.inputs[1], EXAMPLES["pixels"][1].reshape(-1))
    loss = task.loss(model(prepared.inputs), Batch(prepared.inputs, prepared.targets))
    assert loss.item() == pytest.approx(np.log(10))


def test_convolutional_network_is_the_tutorials() -> None:
    task = load_task("emnist_cnn")
    model = task.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_663_370
    prepared = task.prepare(EXAMPLES)
    assert prepared.inputs.shape == (2, 28, 28, 1)
    np.testing.assert_array_equal(prepared.inputs[..., 0], EXAMPLES["pixels"])
    assert prepared.targets.tolist() == [3, 9]
    assert prepared.targets.dtype == torch.int64
    assert model(prepared.inputs).shape == (2, 10)


def test_initial_weights_come_from_torchs_seed() -> None:
    task = load_task("emnist_cnn")
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(next(iter(task.model().parameters())).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_client_without_examples() -> None:
    for name in ("emnist_lr", "emnist_cnn"):
        empty = {"pixels": np.zeros((0, 28, 28), np.float32), "label": np.zeros(0, np.int32)}
        assert len(load_task(name).prepare(empty)) == 0


def test_unknown_tasks() -> None:
    with pytest.raises(
        InputError, match="unknown task 'emnist': choose from shakespeare, emnist_lr"
    ):
        load_task("emnist")
    with pytest.raises(InputError, match=r"task 'tasks.shakespeare:PROMPT' is a str, not a tasks"):
        load_task("tasks.shakespeare:PROMPT")
