"""The machine ends: what the disk has been asked to keep is enough to go on to the same model."""

import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Federate
from weights.named import fingerprint

RUN: dict[str, Any] = {
    "task": "emnist_lr",
    "cohort": "2",
    "rounds": 8,
    "eval_every": 0,
    "aggregator": "compression",
    "codec": "topk:fraction=0.05,feedback=true,threshold=100",
    "server_optimizer": "sgd:lr=0.5,momentum=0.9",
}
"""State everywhere: residuals on clients, norms and momentum on the server."""


class Machine:
    """What a loss of power would leave of a folder: all names, and of a file what was last waited for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._disk: dict[int, bytes] = {}
        self.left: list[dict[Path, bytes]] = []
        self.open: list[int] = []

    def sync(self, handle: int) -> None:
        """What stands for `os.fsync`: each time is a moment at which power is lost, before and after."""
        self._lose()
        file = Path(f"/proc/self/fd/{handle}")
        if file.is_file():
            self._disk[os.fstat(handle).st_ino] = file.read_bytes()
            self.open.append(os.dup(handle))  # so that no other file gets its number
        self._lose()

    def _lose(self) -> None:
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        self.left.append(
            {
                path.relative_to(self._folder): self._disk.get(path.stat().st_ino, b"")
                for path in files
            }
        )


def test_a_run_goes_on_after_a_loss_of_power(
    writers: str, tmp_path: Path, federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "straight")
    ticks = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", machine.sync)
        patch.setattr(time, "monotonic", lambda: 0.06 * next(ticks))
        _, arrays = federate("straight", **RUN, data=writers)
    for handle in machine.open:
        os.close(handle)
    assert len(machine.left) > 60
    for number, files in enumerate(machine.left[::7]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        _, again = federate(folder.name, **RUN, data=writers, resume=True)
        assert fingerprint(again) == fingerprint(arrays)
