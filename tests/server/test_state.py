"""Checkpoints of a run: every optimizer goes on where it stopped."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from server.state import load_state, save_state
from settings.errors import InputError
from settings.schema import Settings
from weights.named import fingerprint
from weights.optimizers import _TORCH_NAMES, OPTIMIZERS, make_optimizer

TORCH = [f"torch.{name}:lr=0.1" for name in _TORCH_NAMES]
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
    save_state(tmp_path, 2, stopped.arrays, stopped.optimizer, header)
    weights, read = load_state(tmp_path, settings, resumed.optimizer)
    assert read["round"] == 2
    assert read["more"] == [1, 2]
    with torch.no_grad():
        resumed.weight.copy_(torch.from_numpy(weights["w"]))
    resumed.step(3)
    assert fingerprint(resumed.arrays) == fingerprint(straight.arrays)
    assert fingerprint(resumed.arrays) != fingerprint(stopped.arrays)


def saved(folder: Path, server_round: int, settings: Settings) -> Path:
    problem = Problem("sgd:lr=0.1")
    header = {"settings": settings.to_config()}
    return save_state(folder, server_round, problem.arrays, problem.optimizer, header)


def test_the_last_few_are_kept_and_the_last_is_read(tmp_path: Path) -> None:
    settings = Settings()
    for server_round in (8, 9, 10, 11):
        saved(tmp_path, server_round, settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"round-{server_round:06}.safetensors" for server_round in (9, 10, 11)
    ]
    assert load_state(tmp_path, settings, Problem("sgd:lr=0.1").optimizer)[1]["round"] == 11


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
    )
    weights, _ = load_state(tmp_path, changed, Problem("sgd:lr=0.1").optimizer)
    np.testing.assert_array_equal(weights["w"], Problem("sgd:lr=0.1").arrays["w"])
