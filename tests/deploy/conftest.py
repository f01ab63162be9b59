"""One federation of real processes for all tests of this folder, and runs of it to compare with."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.loopback import Loopback, equal_shares
from settings.schema import Settings
from simulation.federation import simulate
from weights.checkpoint import read_checkpoint
from weights.named import NamedArrays

HERE = Path(__file__).parent
NODES = 3


def until(condition: Callable[[], Any], timeout: float = 300.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@dataclass
class Job:
    """A run's settings and what it leaves, in a folder of its own with a copy of the data."""

    folder: Path
    values: dict[str, Any]

    @property
    def settings(self) -> Settings:
        return Settings(
            task="faulty:TASK",
            data=str(self.folder / "digits_train.h5"),
            eval_every=0,
            logdir=str(self.folder / "run"),
            save=str(self.folder / "model.safetensors"),
            **self.values,
        )

    def tell(self, **faults: str) -> None:
        """What clients do with their next messages; see faulty.py."""
        for client_id, actions in faults.items():
            (self.folder / f"{client_id}.faults").write_text(actions)

    def reached(self, client_id: str) -> None:
        """Wait until a client obeys a line of its faults."""
        until((self.folder / f"{client_id}.reached").exists)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The finished rounds, as the run's JSON file has them."""
        file = self.folder / "run" / "metrics.json"
        rounds: list[dict[str, Any]] = (
            json.loads(file.read_text())["rounds"] if file.exists() else []
        )
        return rounds

    @property
    def model(self) -> NamedArrays:
        return read_checkpoint(self.folder / "model.safetensors")[0]


MakeJob = Callable[..., Job]


@pytest.fixture
def job(writers: str, tmp_path: Path) -> MakeJob:
    def make(name: str, **values: Any) -> Job:
        shutil.copytree(Path(writers).parent, tmp_path / name)
        return Job(tmp_path / name, values)

    return make


@pytest.fixture
def simulated(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """The same run in this process; a fault that costs a reply there is an exception here."""

    def run(like: Job, **faults: str) -> Job:
        monkeypatch.syspath_prepend(str(HERE))
        twin = job(f"{like.folder.name}-simulated", **like.values)
        twin.tell(**faults)
        simulate(twin.settings)
        return twin

    return run


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    with Loopback(tmp_path_factory.mktemp("federation")) as loopback:
        path = os.environ.get("PYTHONPATH", "")
        loopback.environment["PYTHONPATH"] = f"{HERE}{os.pathsep}{path}" if path else str(HERE)
        loopback.start(equal_shares(NODES))
        yield loopback


def same_model(one: Job, other: Job) -> None:
    """Equal but for the order in which replies are added up."""
    assert one.model.keys() == other.model.keys()
    for name, array in one.model.items():
        np.testing.assert_allclose(array, other.model[name], rtol=0, atol=1e-6)
