"""A disk that fills up while a run writes: a warning, an intact earlier checkpoint, nothing half-written."""

import itertools
import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from server.saver import Saver
from server.state import Checkpoint, run_of
from settings.errors import InputError
from settings.schema import Settings
from simulation.federation import simulate
from weights.checkpoint import read_checkpoint, write_checkpoint
from weights.named import fingerprint

RUN: dict[str, Any] = {"task": "emnist_lr", "cohort": "4", "rounds": 4, "eval_every": 0}


@contextmanager
def limit(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: writing fails, as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system can be mounted by root only: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_standard_output_on_a_full_disk(tmp_path: Path) -> None:
    script = "from simulation.cli import main; main()"
    words = ["run", "emnist_lr", "--cohort", "2", "--rounds", "2", "--logdir", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script, *words], stdout=full, stderr=subprocess.PIPE, check=True
        )
    assert b"standard output cannot be written, the run goes on" in done.stderr
    assert (tmp_path / "checkpoints/round-000002.safetensors").is_file()


def test_standard_output_into_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """As `| head -1` leaves it."""
    script = "from simulation.cli import main; main()"
    words = ["run", "emnist_lr", "--cohort", "2", "--rounds", "2", "--logdir", str(tmp_path)]
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=True)
    os.close(write)
    assert (
        b"WARNING :   standard output cannot be written, the run goes on: [Errno 32]" in done.stderr
    )
    assert (tmp_path / "checkpoints/round-000002.safetensors").is_file()


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(small_disk: Path) -> None:
    path = small_disk / "a.safetensors"
    write_checkpoint(path, {"w": np.ones(40_000, np.float32)}, {})
    with pytest.raises(InputError, match=r"a.safetensors: cannot be written: .*[Nn]o space left"):
        write_checkpoint(path, {"w": np.zeros(40_000, np.float32)}, {})
    assert [file.name for file in small_disk.iterdir()] == ["a.safetensors"]
    assert read_checkpoint(path)[0]["w"].sum() == 40_000


def during(rounds: set[int], monkeypatch: pytest.MonkeyPatch, full: Callable[[], Any]) -> None:
    """Let the disk be full while these rounds write what they leave."""
    write = Saver._write
    numbers = itertools.count(1)

    def writing(self: Saver, checkpoint: Checkpoint) -> None:
        with full() if next(numbers) in rounds else nullcontext():
            write(self, checkpoint)

    monkeypatch.setattr(Saver, "_write", writing)


def events(logdir: Path, tag: str) -> list[int]:
    read = EventAccumulator(str(logdir))
    read.Reload()
    return [event.step for event in read.Scalars(tag)]


# What fits below the limit: nothing at all, or logs but no checkpoint.
@pytest.mark.parametrize("size", [100, 30_000])
def test_a_round_without_a_checkpoint_is_counted_and_the_run_goes_on(
    size: int,
    writers: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight, folder = tmp_path / "straight", tmp_path / "full"
    saved = {place: place / "model.safetensors" for place in (straight, folder)}
    simulate(Settings(**RUN, data=writers, logdir=str(straight), save=str(saved[straight])))
    during({2, 3}, monkeypatch, lambda: limit(size))
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    simulate(Settings(**RUN, data=writers, logdir=str(folder), save=str(saved[folder])))
    models = [read_checkpoint(path)[0] for path in saved.values()]
    assert fingerprint(models[0]) == fingerprint(models[1])
    warned = [r.getMessage() for r in caplog.records if "has no checkpoint" in r.getMessage()]
    assert len(warned) == 2
    assert all("cannot be written" in line and "\n" not in line for line in warned)
    rounds = json.loads((folder / "metrics.json").read_text())["rounds"]
    assert [bool(record["unsaved"]) for record in rounds] == [False, True, True, False]
    assert sorted(path.name for path in folder.glob("checkpoints/round-*")) == [
        f"round-00000{number}.safetensors" for number in (1, 4)
    ]
    assert not list(folder.rglob(".*"))
    assert events(folder, "comm/answered") == [1, 2, 3, 4]
    assert events(folder, "checkpoint/unsaved") == [2, 3]


def test_a_run_whose_model_is_nowhere_ends_with_an_error(
    writers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during({4}, monkeypatch, lambda: limit(100))
    settings = Settings(**RUN, data=writers, logdir=str(tmp_path / "run"))
    with pytest.raises(InputError, match=r"^the last round has no checkpoint: .*cannot be written"):
        simulate(settings)
    monkeypatch.undo()
    assert run_of(tmp_path / "run/checkpoints") is not None
    simulate(Settings(**RUN, data=writers, logdir=str(tmp_path / "run"), resume=True))
    assert len(list(tmp_path.glob("run/checkpoints/round-*"))) == 3


def test_a_final_model_that_cannot_be_written_is_an_error(
    writers: str, small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "full").write_bytes(bytes(250_000))
    saved = small_disk / "model.safetensors"
    settings = Settings(**RUN, data=writers, logdir=str(tmp_path / "run"), save=str(saved))
    with pytest.raises(InputError, match=r"model.safetensors: cannot be written"):
        simulate(settings)
    assert [file.name for file in small_disk.iterdir()] == ["full"]
    assert len(list(tmp_path.glob("run/checkpoints/round-*"))) == 3


def test_a_place_that_cannot_be_written_is_said_before_the_first_round(
    writers: str, small_disk: Path, tmp_path: Path
) -> None:
    (small_disk / "full").write_bytes(bytes(256 * 1024))
    for change in ({"logdir": str(small_disk / "run")}, {"json": str(small_disk / "run.json")}):
        values: dict[str, Any] = {**RUN, "data": writers, "logdir": str(tmp_path / "run"), **change}
        settings = Settings(**values)
        with pytest.raises(InputError, match="cannot be written"):
            simulate(settings)
