"""Checkpoints of a run: every optimizer goes on where it stopped."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.optim import Optimizer

from server.history import History
from server.state import (
    Checkpoint,
    KeepsStates,
    forget,
    has_checkpoint,
    load_state,
    run_of,
)
from settings.errors import InputError
from settings.schema import Settings
from simulation.grid import InProcessGrid
from weights.checkpoint import read_checkpoint
from weights.named import fingerprint
from weights.optimizers import _TORCH, OPTIMIZERS, make_optimizer
from weights.wire import pack

TORCH = [f"{name}:lr=0.1" for name in _TORCH]
TFF = [f"{name}:lr=0.1" for name in OPTIMIZERS]


class Problem:
    """A quadratic under a server optimizer."""

    def __init__(self, spec: str) -> None:
        self.weight = nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))
        self.optimizer: Optimizer = make_optimizer(spec, [self.weight], "server optimizer")

    def step(self, times: int) -> None:
        for _ in range(times):
            self.weight.grad = self.weight.detach() * torch.linspace(1, 3, 6).reshape(2, 3)
            self.optimizer.step()

    @property
    def arrays(self) -> dict[str, Any]:
        return {"w": self.weight.detach().numpy()}


@pytest.mark.parametrize(
    "spec", [*TFF, *TORCH, "sgd:lr=0.1,momentum=0.9", "torch.SGD:momentum=0.9"]
)
def test_every_optimizer_resumes_bit_for_bit(spec: str, tmp_path: Path) -> None:
    straight, stopped, resumed = Problem(spec), Problem(spec), Problem(spec)
    straight.step(5)
    stopped.step(2)
    settings = Settings(server_optimizer=spec)
    header = {"settings": settings.to_config(), "more": [1, 2]}
    history = History(tmp_path)
    for line in ('{"round": 1, "loss": NaN}', '{"round": 2, "loss": 1.0}'):
        history.add(line)
    history.flush()
    Checkpoint(2, stopped.arrays, stopped.optimizer, header).write(tmp_path, history.mark)
    weights, read = load_state(tmp_path, settings, resumed.optimizer)
    assert read["round"] == 2
    assert read["more"] == [1, 2]
    first, second = (each["loss"] for each in read["rounds"])
    assert math.isnan(first)
    assert second == 1.0
    with torch.no_grad():
        resumed.weight.copy_(torch.from_numpy(weights["w"]))
    resumed.step(3)
    assert fingerprint(resumed.arrays) == fingerprint(straight.arrays)
    assert fingerprint(resumed.arrays) != fingerprint(stopped.arrays)


def saved(
    folder: Path,
    server_round: int,
    settings: Settings,
    nodes: KeepsStates | None = None,
    oldest: int = 0,
) -> Path:
    problem = Problem("sgd:lr=0.1")
    header = {"settings": settings.to_config(), "run": 100 + server_round}
    history = History(folder)
    history.flush()
    checkpoint = Checkpoint(server_round, problem.arrays, problem.optimizer, header, nodes)
    return checkpoint.write(folder, history.mark, oldest=oldest)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to resume: .* holds no checkpoint"):
        load_state(tmp_path / "none", Settings(), Problem("sgd:lr=0.1").optimizer)


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(tmp_path: Path) -> None:
    for server_round in (1, 2, 3):
        saved(tmp_path, server_round, Settings())
    last = tmp_path / "round-000003.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    flipped = tmp_path / "round-000002.safetensors"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x7f")
    assert load_state(tmp_path, Settings(), Problem("sgd:lr=0.1").optimizer)[1]["round"] == 1
    (tmp_path / "round-000001.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="holds no checkpoint that can be read"):
        load_state(tmp_path, Settings(), Problem("sgd:lr=0.1").optimizer)


def test_a_checkpoint_whose_history_is_damaged_is_skipped_for_the_one_before(
    tmp_path: Path,
) -> None:
    history, problem = History(tmp_path), Problem("sgd:lr=0.1")
    header = {"settings": Settings().to_config()}
    for server_round in (1, 2, 3):
        history.add(json.dumps({"round": server_round}))
        history.flush()
        checkpoint = Checkpoint(server_round, problem.arrays, problem.optimizer, header)
        checkpoint.write(tmp_path, history.mark)
    file = tmp_path / "rounds.jsonl"
    file.write_bytes(file.read_bytes()[:-2])
    read = load_state(tmp_path, Settings(), problem.optimizer)[1]
    assert (read["round"], read["rounds"]) == (2, [{"round": 1}, {"round": 2}])
    file.unlink()
    with pytest.raises(InputError, match="holds no checkpoint that can be read"):
        load_state(tmp_path, Settings(), problem.optimizer)


def test_a_checkpoint_is_of_the_moment_when_it_was_made(tmp_path: Path) -> None:
    problem, nodes = Problem("sgd:lr=0.1,momentum=0.9"), Nodes()
    problem.step(1)
    nodes.remember(0, 1)
    header = {"settings": Settings().to_config()}
    before = problem.arrays["w"].copy()
    moment = problem.optimizer.state[problem.weight]["momentum_buffer"].clone()
    checkpoint = Checkpoint(1, problem.arrays, problem.optimizer, header, nodes)
    problem.step(1)
    nodes.remember(0, 2)
    history = History(tmp_path)
    history.flush()
    path = checkpoint.write(tmp_path, history.mark)
    arrays, _ = read_checkpoint(path)
    np.testing.assert_array_equal(arrays["weights/w"], before)
    assert not np.array_equal(problem.arrays["w"], before)
    np.testing.assert_array_equal(arrays["optimizer/0/momentum_buffer"], moment)
    nodes.load_states(tmp_path / "states", 1)
    assert nodes.remembered() == [1, None]


def test_a_checkpoint_need_not_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    problem = Problem("sgd:lr=0.1")
    checkpoint = Checkpoint(1, problem.arrays, problem.optimizer, {})
    assert checkpoint.num_bytes == 24
    checkpoint.write(tmp_path, History(tmp_path).mark, durable=False)
    assert not synced
    checkpoint.write(tmp_path, History(tmp_path).mark)
    assert len(synced) == 2


def test_the_last_good_checkpoint_says_whose_it_is(tmp_path: Path) -> None:
    assert run_of(tmp_path / "none") is None
    assert not has_checkpoint(tmp_path)
    for server_round in (1, 2):
        saved(tmp_path, server_round, Settings())
    assert run_of(tmp_path) == 102
    (tmp_path / "round-000002.safetensors").write_bytes(b"damaged")
    assert run_of(tmp_path) == 101
    (tmp_path / "round-000001.safetensors").write_bytes(b"damaged")
    assert run_of(tmp_path) is None
    assert has_checkpoint(tmp_path)


class Nodes(InProcessGrid):
    """Two nodes; `remember` puts a number into the state of one."""

    def __init__(self) -> None:
        super().__init__(ClientApp(), {}, [{}, {}])

    def remember(self, node: int, value: int) -> None:
        context = self._contexts[self.get_node_ids()[node]]
        context.state = RecordDict({"kept": pack({"value": np.array(value)})})

    def remembered(self) -> list[int | None]:
        states = [context.state.array_records for context in self._contexts.values()]
        return [int(s["kept"]["value"].numpy()) if "kept" in s else None for s in states]


def test_node_states_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    nodes, settings = Nodes(), Settings()
    nodes.remember(1, 10)
    paths = []
    for server_round in (1, 2, 3, 4, 5):
        nodes.remember(0, server_round)
        paths.append(saved(tmp_path, server_round, settings, nodes))
    assert loaded(tmp_path) == (5, [5, 10])
    # A damaged checkpoint takes the states of its round with it, a damaged state its checkpoint.
    paths[4].write_bytes(b"damaged")
    assert loaded(tmp_path) == (4, [4, 10])
    assert not list(tmp_path.glob("states/*/*/round-000005*"))
    [state] = tmp_path.glob("states/*/*/round-000004*")
    state.write_bytes(b"damaged")
    assert loaded(tmp_path) == (3, [3, 10])


def test_a_resumed_run_writes_the_states_that_change(tmp_path: Path) -> None:
    """What it has read is on disk already: the residuals of all clients may be gigabytes."""
    nodes = Nodes()
    nodes.remember(0, 1)
    nodes.remember(1, 10)
    saved(tmp_path, 1, Settings(), nodes)
    resumed = Nodes()
    resumed.load_states(tmp_path / "states", 1)
    resumed.remember(0, 2)
    saved(tmp_path, 2, Settings(), resumed)
    files = sorted(tmp_path.glob("states/*/kept/*"))
    assert [file.name for file in files] == [
        f"round-00000{number}.safetensors" for number in (1, 2, 1)
    ]
    assert loaded(tmp_path) == (2, [2, 10])


def test_node_states_of_all_kept_checkpoints_are_kept(tmp_path: Path) -> None:
    """Also where rounds lie between the checkpoints, because the disk was full."""
    nodes = Nodes()
    for server_round in (1, 2, 9, 10):
        nodes.remember(0, server_round)
        path = saved(tmp_path, server_round, Settings(), nodes)
    assert len(list(tmp_path.glob("states/*/*/round-*"))) == 4
    for server_round in (9, 2):
        path.write_bytes(b"damaged")
        assert loaded(tmp_path) == (server_round, [server_round, None])
        path = tmp_path / f"round-{server_round:06}.safetensors"


def test_states_that_belong_to_no_round_are_forgotten(tmp_path: Path) -> None:
    forget(tmp_path / "none")
    nodes = Nodes()
    nodes.remember(0, 1)
    path = saved(tmp_path, 1, Settings(), nodes)
    forget(tmp_path)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "rounds.jsonl"]


def loaded(folder: Path) -> tuple[int, list[int | None]]:
    nodes = Nodes()
    _, header = load_state(folder, Settings(), Problem("sgd:lr=0.1").optimizer, nodes)
    return header["round"], nodes.remembered()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, "it was trained with --seed 0, not 1"),
        ({"cohort": "5"}, "--cohort 10, not 5"),
        ({"server_optimizer": "adam:lr=0.1"}, "--server-optimizer sgd:lr=1.0, not adam:lr=0.1"),
        ({"client_optimizer": "sgd:lr=3"}, "--client-optimizer"),
        ({"task": "emnist_lr"}, "--task shakespeare, not emnist_lr"),
        ({"data": "other.h5"}, "--data"),
        ({"init": "x.h5"}, "--init"),
        ({"client_ids": "a"}, "--client-ids"),
        ({"local_epochs": 2}, "--local-epochs 1, not 2"),
        ({"batch_size": 3}, "--batch-size"),
        ({"max_batches": 3}, "--max-batches"),
        ({"shuffle": False}, "--shuffle"),
        ({"weighting": "uniform"}, "--weighting examples, not uniform"),
        ({"over_select": 1.5}, "--over-select 1.0, not 1.5"),
        ({"deadline": 9}, "--deadline 3600, not 9"),
        ({"min_replies": 2}, "--min-replies 1, not 2"),
        ({"precision": "bf16"}, "--precision float32, not bf16"),
        ({"aggregator": "robust"}, "--aggregator mean, not robust"),
        ({"codec": "float16"}, "--codec"),
        ({"broadcast_codec": "float16"}, "--broadcast-codec identity, not float16"),
    ],
)
def test_other_settings_are_refused(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path, 1, Settings())
    with pytest.raises(InputError, match=said):
        load_state(tmp_path, Settings(**changed), Problem("sgd:lr=0.1").optimizer)


def test_what_does_not_touch_training_may_change(tmp_path: Path) -> None:
    saved(tmp_path, 1, Settings())
    changed = Settings(
        rounds=99,
        logdir="elsewhere",
        save="x.safetensors",
        json="x.json",
        resume=True,
        eval_every=7,
        evaluation="centralised",
        eval_cohort="3",
        eval_batches=2,
        min_available_nodes=3,
        workers=4,
    )
    weights, _ = load_state(tmp_path, changed, Problem("sgd:lr=0.1").optimizer)
    np.testing.assert_array_equal(weights["w"], Problem("sgd:lr=0.1").arrays["w"])
