"""Runs whose clients are trained at once, against runs that train them one by one."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import client.app
import client.data
from client.data import prepared
from client.regression import Regression
from client.together import update_together
from tasks.catalogue import load_task
from tasks.data import InMemory, Split
from tasks.stream import Prepared
from tests.conftest import Federate
from weights.named import fingerprint
from weights.processor import registers

SMALL = {
    "task": "emnist_lr",
    "cohort": "6",
    "rounds": 2,
    "local_epochs": 2,
    "batch_size": 8,
    "client_optimizer": "sgd:lr=0.05",
}


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the groups that are trained."""
    sizes: list[int] = []

    def watch(*arguments: Any) -> Any:
        sizes.append(len(arguments[3]))
        return update_together(*arguments)

    monkeypatch.setattr(client.app, "update_together", watch)
    return sizes


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has every client trained by itself from now on."""
    return lambda: monkeypatch.setattr(client.app, "can_join", lambda *_: False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"client_optimizer": "sgd:lr=0.05,momentum=0.9"},
        {"client_optimizer": "adam:lr=0.001", "max_batches": 2},
        {"aggregator": "robust"},
        {"codec": "topk:fraction=0.02,threshold=100,feedback=true", "client_ids": "c,d,e"},
        {"broadcast_codec": "bfloat16:threshold=100"},
    ],
    ids=str,
)
def test_the_same_run(
    options: dict[str, Any],
    writers: str,
    federate: Federate,
    groups: list[int],
    alone: Callable[[], None],
) -> None:
    values = {**SMALL, "data": writers, **options}
    many, weights = federate("many", **values)
    assert groups == [3, 3] if "client_ids" in options else [6, 6]
    _, repeated = federate("again", **values)
    assert fingerprint(repeated) == fingerprint(weights)
    alone()
    one, expected = federate("one", **values)
    assert len(groups) == 4
    for name, array in expected.items():
        np.testing.assert_allclose(weights[name], array, rtol=1e-5, atol=1e-5)
    for a, b in zip(many["rounds"], one["rounds"], strict=True):
        assert a["train"] == pytest.approx(b["train"], rel=1e-5)
        assert a["comm"] == b["comm"]


@pytest.mark.skipif(registers() is None, reason="no llvmlite, or a processor without AVX2")
def test_a_softmax_regression_is_trained_by_its_kernel(
    writers: str, federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stacked operations would give the same numbers, later."""
    train, trained = Regression.train, []

    def watch(*arguments: Any) -> Any:
        results = train(*arguments)
        trained.append(results is not None)
        return results

    monkeypatch.setattr(Regression, "train", watch)
    federate(**SMALL, data=writers)
    assert trained == [True, True]


@pytest.mark.parametrize("task", ["emnist_lr", "emnist_cnn"])
def test_stopping_in_between_changes_nothing(task: str, writers: str, federate: Federate) -> None:
    values = {
        **SMALL,
        "task": task,
        "data": writers,
        "max_batches": 2,
        "client_optimizer": "sgd:lr=0.05,momentum=0.9",
    }
    _, straight = federate("straight", **values)
    federate("stopped", **{**values, "rounds": 1})
    _, resumed = federate("stopped", **values, resume=True)
    assert fingerprint(straight) == fingerprint(resumed)


def test_the_same_model_at_any_number_of_workers(writers: str, federate: Federate) -> None:
    values = {
        **SMALL,
        "task": "emnist_cnn",
        "data": writers,
        "max_batches": 2,
        "codec": "topk:fraction=0.02,feedback=true",
        "over_select": 1.3,
    }
    first, weights = federate("one", **values, workers=1)
    for workers in (2, 5):
        content, same = federate(f"{workers}", **values, workers=workers)
        assert fingerprint(same) == fingerprint(weights)
        for a, b in zip(first["rounds"], content["rounds"], strict=True):
            assert (a["train"], a["eval"], a["comm"]) == (b["train"], b["eval"], b["comm"])


def test_a_client_that_fails_fails_alone(
    writers: str, federate: Federate, groups: list[int], tmp_path: Path
) -> None:
    data = str(tmp_path / "digits_train.h5")
    shutil.copy(writers, data)
    with h5py.File(data, "r+") as file:
        del file["examples/d/label"]
        file["examples/d/label"] = np.zeros(3, np.int32)
    content, _ = federate(**{**SMALL, "data": data, "rounds": 1, "cohort": "all", "eval_every": 0})
    assert groups == [7]
    assert list(content["rounds"][0]["comm"]["failed"]) == ["d"]
    assert content["rounds"][0]["comm"]["answered"] == 7


def test_a_label_that_is_no_class_fails_one_client(
    spoilt: Callable[..., str], federate: Federate
) -> None:
    """Though clients train together, and nothing is wrong before the group's first step."""
    ours, _ = federate(
        task="emnist_lr", data=spoilt("c", "label", -1), rounds=2, cohort="all", eval_every=0
    )
    for record in ours["rounds"]:
        assert record["comm"]["answered"] == 7
        assert list(record["comm"]["failed"]) == ["c"]


@pytest.mark.parametrize("broken", ["a", "c"], ids=["the first of a group", "a peer"])
def test_what_cannot_be_read_is_not_read_again_in_the_round(
    broken: str, writers: str, federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def once(task: str, data: str, split: Split, client_id: str, seed: int) -> Prepared:
        tried.append(client_id)
        if client_id == broken and tried.count(broken) == 1:
            raise OSError("the disk is away")
        return prepared(task, data, split, client_id, seed)

    monkeypatch.setattr(client.app, "prepared", once)
    content, _ = federate(**SMALL | {"client_ids": "a,b,c,d", "eval_every": 0}, data=writers)
    first, second = (record["comm"] for record in content["rounds"])
    assert list(first["failed"]) == [broken]
    assert "the disk is away" in first["failed"][broken]
    assert (second["answered"], second["failed"]) == (4, {})


def test_groups_are_bounded(
    writers: str, federate: Federate, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**SMALL, "data": writers, "cohort": "all", "rounds": 1}
    _, weights = federate("whole", **values)
    monkeypatch.setattr("client.group.MOST_BYTES", 1_500_000)
    _, parts = federate("parts", **values)
    assert groups[0] == 8
    assert len(groups) > 2
    assert sum(groups[1:]) <= 8
    for name, array in weights.items():
        np.testing.assert_allclose(parts[name], array, rtol=1e-5, atol=1e-6)


def test_prepared_examples_are_kept_up_to_a_number_of_bytes() -> None:
    kept = client.data._Kept(1000)
    for index in range(4):
        kept.add(index, Prepared(torch.zeros(50), torch.zeros(50)))  # 400 bytes
        assert kept.get(0)  # used last
    assert [index for index in range(4) if kept.get(index)] == [0, 3]


def test_what_a_task_draws_while_it_prepares_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(examples: Any) -> Prepared:
        return Prepared(torch.rand(3), torch.zeros(3))

    task = replace(
        load_task("emnist_lr"), prepare=prepare, open=lambda path, split: InMemory({"a": {}})
    )
    monkeypatch.setattr(client.data, "load_task", lambda spec: task)
    client.data.population.cache_clear()
    first, second, third = (
        client.data.prepared("drawing", "x", "train", "a", seed).inputs for seed in (1, 2, 1)
    )
    assert not torch.equal(first, second)
    assert torch.equal(first, third)
