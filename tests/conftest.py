"""What several test files share: TFF's data, a small federation, and how to run one."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
import settings.threads  # noqa: F401  before torch

# isort: split
import h5py
import numpy as np
import pytest

from settings.schema import Settings
from weights.checkpoint import read_checkpoint
from weights.named import NamedArrays

Run = tuple[dict[str, Any], NamedArrays]
Federate = Callable[..., Run]


@pytest.fixture(scope="session")
def tff_data() -> Path:
    """The folder of TFF's client data and of the parity files beside it."""
    folder = os.environ.get("FEDFERRY_DATA")
    if not folder:
        pytest.skip("FEDFERRY_DATA is not set: it names the folder of shakespeare_train.h5 etc.")
    return Path(folder)


@pytest.fixture(scope="session")
def writers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits of eight made-up writers, `a` to `h`, of 5 to 40 images, in TFF's layout."""
    rng = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("writers")
    patterns = rng.uniform(size=(10, 28, 28))
    for split, factor in (("train", 5), ("test", 1)):
        with h5py.File(folder / f"digits_{split}.h5", "w") as file:
            for index, name in enumerate("abcdefgh"):
                labels = rng.integers(10, size=factor * (index + 1))
                noise = rng.uniform(size=(len(labels), 28, 28))
                client = file.create_group(f"examples/{name}")
                client["label"] = labels.astype(np.int32)
                client["pixels"] = ((patterns[labels] + noise) / 2).astype(np.float32)
    return str(folder / "digits_train.h5")


@pytest.fixture
def spoilt(writers: str, tmp_path: Path) -> Callable[..., str]:
    """A copy of the writers' training data in which one client has another first value of a feature."""

    def copy(client: str, feature: str, value: float) -> str:
        path = tmp_path / "spoilt_train.h5"
        shutil.copyfile(writers, path)
        with h5py.File(path, "r+") as file:
            file[f"examples/{client}/{feature}"][0] = value
        return str(path)

    return copy


@pytest.fixture
def federate(tmp_path: Path) -> Federate:
    """Runs `simulate` with these settings in a folder of its own: the JSON file and the saved arrays."""
    from simulation.federation import simulate

    def run(name: str = "run", **values: Any) -> Run:
        folder = tmp_path / name
        paths = {
            "logdir": folder,
            "json": folder / "run.json",
            "save": folder / "model.safetensors",
        }
        simulate(Settings(**{key: str(path) for key, path in paths.items()} | values))
        return json.loads((folder / "run.json").read_text()), read_checkpoint(paths["save"])[0]

    return run
