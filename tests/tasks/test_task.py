"""A task of one's own: what is said of one that is not as it should be."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from settings.errors import InputError
from tasks.data import InMemory
from tasks.stream import Prepared
from tasks.task import Task

EXAMPLES = {"points": np.zeros((4, 2), np.float32)}


def task(**changes: Any) -> Task:
    def prepare(examples: Any) -> Prepared:
        return Prepared(torch.from_numpy(examples["points"]), torch.zeros(4))

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        return torch.zeros(())

    own = Task(
        "mine", lambda: nn.Linear(2, 1), prepare, loss, open=lambda path, split: InMemory({})
    )
    return replace(own, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": nn.Linear(2, 1)},
            "model must build the model, as its class does, and not be one",
        ),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (
            {"metrics": {"mine": max}},
            "metric mine must be a Metric, not a builtin_function_or_method",
        ),
        ({"metrics": {"loss": max}}, "'loss' is there anyway, a metric needs another name"),
    ],
)
def test_a_task_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^task mine: {re.escape(said)}$"):
        task(**changes)


def test_what_a_task_gives_is_of_the_right_kind() -> None:
    with pytest.raises(
        InputError, match=r"^task mine: model must build a torch\.nn\.Module, not a int$"
    ):
        task(model=lambda: 3).build("")
    opened = task(open=lambda path, split: {"a": EXAMPLES})
    said = "^task mine: open must give a Population, as InMemory is, not a dict$"
    with pytest.raises(InputError, match=said):
        opened.population("none", "train")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda examples: (1, 2), "prepare gives a tuple, not Prepared(inputs, targets)"),
        (
            lambda examples: Prepared(examples["points"], torch.zeros(4)),
            "prepare gives a ndarray, a Tensor, not tensors",
        ),
        (
            lambda examples: Prepared(torch.zeros(4, 2), torch.zeros(3)),
            "inputs and targets must be equally many, not of shapes (4, 2) and (3,)",
        ),
        (
            lambda examples: Prepared(torch.zeros(4), torch.zeros(4), torch.tensor(True)),
            "inputs and targets must be equally many, not of shapes (4,) and (4,) and ()",
        ),
    ],
)
def test_what_prepare_gives(prepare: Callable[..., Any], said: str) -> None:
    said = f"client 'a' has data that task mine cannot prepare: {said}; its features are: points (4, 2)"
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        task(prepare=prepare).prepared("a", EXAMPLES)


def test_clients_are_text_and_features_arrays() -> None:
    with pytest.raises(InputError, match=r"^a client id is text, not 7$"):
        InMemory({7: EXAMPLES})  # type: ignore[dict-item]
    lists: Any = {"a": {"points": [[1.0, 2.0]]}}
    with pytest.raises(InputError, match=r"^client 'a': points must be a numpy array, not a list$"):
        InMemory(lists).examples("a")
