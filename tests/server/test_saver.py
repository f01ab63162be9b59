"""What rounds leave behind: written in order, a large model while the next round is under way."""

import errno
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from server.history import read_history
from server.record import Recorder, RoundRecord
from server.saver import Saver
from server.state import Checkpoint
from settings.errors import InputError
from settings.schema import Settings
from weights.checkpoint import round_path


class Stub(Checkpoint):
    """An empty file; waits until it may be written, and may fail."""

    def __init__(
        self, server_round: int, *, error: Exception | None = None, held: bool = False
    ) -> None:
        self.round = server_round
        self.error = error
        self.free = threading.Event()
        self.held = held
        self.written = False
        self.arguments: dict[str, Any] = {}
        self.rounds: list[tuple[int, str]] = []

    @property
    def num_bytes(self) -> int:
        return 2**30 if self.held else 0

    def write(self, folder: Path, mark: Any, **arguments: Any) -> Path:
        assert not self.held or self.free.wait(20)
        if self.error is not None:
            raise self.error
        self.written = True
        self.arguments = arguments
        self.rounds = [(item["round"], item["unsaved"]) for item in read_history(folder, mark)]
        path = round_path(folder, self.round)
        path.touch()
        return path


class Run:
    """A saver with what it needs."""

    def __init__(self, logdir: Path, before: int = 0) -> None:
        self.logdir = logdir
        self.folder = logdir / "checkpoints"
        self.rounds = [RoundRecord(number + 1, {}, {}, {}, {}, 0.5) for number in range(before)]
        recorder = Recorder(Settings(), logdir, [*self.rounds], {})
        self.saver = Saver(self.folder, recorder, self.rounds)

    def leave(self, **arguments: Any) -> Stub:
        number = len(self.rounds) + 1
        stub = Stub(number, **arguments)
        self.rounds.append(RoundRecord(number, {}, {}, {}, {}, 0.5))
        self.saver.leave(self.rounds[-1], "", lambda: stub)
        return stub

    @property
    def logged(self) -> list[int]:
        content = json.loads((self.logdir / "metrics.json").read_text())
        return [record["round"] for record in content["rounds"]]

    @property
    def kept(self) -> list[int]:
        return sorted(int(path.stem.split("-")[1]) for path in self.folder.glob("round-*"))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is waited for until the disk has it."""
    names: list[str] = []

    def sync(handle: int) -> None:
        names.append(Path(f"/proc/self/fd/{handle}").readlink().name.split(".out.")[0])

    monkeypatch.setattr(os, "fsync", sync)
    return names


def test_a_small_model_is_written_at_once(run: Run) -> None:
    assert run.leave().written


def test_a_large_one_is_behind_by_one_round_at_most(run: Run) -> None:
    first = run.leave(held=True)
    assert not first.written  # and here the next round trains
    left: list[bool] = []

    def next_round() -> None:
        run.leave()
        left.append(first.written)

    waiting = threading.Thread(target=next_round)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    first.free.set()
    waiting.join(20)
    assert left == [True]


def test_what_the_next_round_changes_is_copied_after_the_one_before_is_written(run: Run) -> None:
    first = run.leave(held=True)
    threading.Timer(0.2, first.free.set).start()
    record = RoundRecord(2, {}, {}, {}, {}, 0.5)
    run.rounds.append(record)
    states: list[bool] = []

    def copy() -> Stub:
        states.append(first.written)
        return Stub(2)

    run.saver.leave(record, "", copy)
    assert states == [True]


def test_a_checkpoint_has_its_rounds_and_their_logs(run: Run) -> None:
    run.leave()
    run.leave(error=InputError("no space left"))
    assert run.leave().rounds == [(1, ""), (2, "no space left"), (3, "")]
    logged = EventAccumulator(str(run.logdir)).Reload()
    assert [event.step for event in logged.Scalars("time/seconds")] == [1, 2, 3]


@pytest.mark.parametrize("held", [False, True])
def test_a_round_that_cannot_be_written_is_marked(held: bool, run: Run) -> None:
    with run.saver:
        run.leave()
        failing = run.leave(error=InputError("no space left"), held=held)
        assert run.rounds[1].unsaved == ("" if held else "no space left")
        failing.free.set()
        run.leave()
        assert [record.unsaved for record in run.rounds] == ["", "no space left", ""]
        run.leave(error=InputError("still none"), held=held).free.set()
    assert [record.unsaved for record in run.rounds] == ["", "no space left", "", "still none"]
    content = json.loads((run.logdir / "metrics.json").read_text())
    assert [record["unsaved"] for record in content["rounds"]] == [r.unsaved for r in run.rounds]
    assert run.kept == [1, 3]


@pytest.mark.parametrize("held", [False, True])
def test_what_is_no_full_disk_ends_the_run(held: bool, run: Run) -> None:
    def fail() -> None:
        run.leave(error=ZeroDivisionError(), held=held).free.set()
        run.saver.wait()

    with pytest.raises(ZeroDivisionError):
        fail()
    run.saver.wait()


def test_fast_rounds_wait_for_the_disk_once_a_second(
    run: Run, clock: Clock, synced: list[str]
) -> None:
    moments = (1000.0, 1000.4, 1000.9, 1001.0, 1001.5, 1002.1, 1003.1)
    durable, logged, files = [], [], []
    for moment in moments:
        clock.now = moment
        durable.append(run.leave().arguments["durable"])
        logged.append(len(run.logged))
        files.append(len(synced))
    assert durable == [True, False, False, True, False, True, True]
    assert logged == [1, 1, 1, 4, 4, 6, 7]
    assert synced == ["events", "rounds.jsonl"] * 4
    assert files == [2, 2, 2, 4, 4, 6, 8]


def test_the_last_three_are_kept_and_the_last_that_the_disk_has(run: Run, clock: Clock) -> None:
    kept, oldest = [], []
    for moment in (0.0, 0.1, 0.2, 0.3, 0.4, 1.1, 1.2, 1.3, 1.4):
        clock.now = 1000 + moment
        oldest.append(run.leave().arguments["oldest"])
        kept.append(run.kept)
    assert kept == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 3, 4, 5],
        [4, 5, 6],
        [5, 6, 7],
        [6, 7, 8],
        [6, 7, 8, 9],
    ]
    assert oldest == [0, 1, 1, 1, 1, 1, 4, 5, 6]


def test_a_resumed_run_overwrites_what_is_damaged(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for number in (7, 8, 9, 10, 11):
        round_path(folder, number).touch()
    run = Run(tmp_path, before=9)
    kept = []
    for _ in range(5):
        run.leave()
        kept.append(run.kept)
    assert kept == [
        [8, 9, 10, 11],
        [9, 10, 11],
        [10, 11, 12],
        [10, 11, 12, 13],
        [10, 12, 13, 14],
    ]


def test_a_checkpoint_that_somebody_has_deleted(run: Run, clock: Clock) -> None:
    for _ in range(3):
        run.leave()
    round_path(run.folder, 1).unlink()
    clock.now += 2
    run.leave()
    assert run.kept == [2, 3, 4]


def test_the_end_leaves_everything_done(run: Run, clock: Clock, synced: list[str]) -> None:
    with run.saver:
        for _ in range(4):
            run.leave()
        last = run.leave(held=True)
        synced.clear()
        threading.Timer(0.2, last.free.set).start()
    assert last.written
    assert run.logged == [1, 2, 3, 4, 5]
    assert synced == ["events", "rounds.jsonl", "round-000005.safetensors", "checkpoints"]
    assert run.kept == [3, 4, 5]


def test_a_stopped_run_too(run: Run, clock: Clock, synced: list[str]) -> None:
    def stop() -> None:
        with run.saver:
            for _ in range(3):
                run.leave()
            synced.clear()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert run.logged == [1, 2, 3]
    assert synced == ["events", "rounds.jsonl", "round-000003.safetensors", "checkpoints"]


def test_a_run_that_had_nothing_to_do(run: Run) -> None:
    with run.saver:
        pass
    assert run.logged == run.kept == []


def test_a_run_stopped_while_a_round_is_written_waits_for_that(run: Run) -> None:
    first: list[Stub] = []

    def stop() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        threading.Timer(0.2, first[0].free.set).start()

    def leave_two() -> None:
        with run.saver:
            first.append(run.leave(held=True))
            threading.Timer(0.2, stop).start()
            run.leave()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            leave_two()
    finally:
        signal.signal(signal.SIGINT, before)
    assert first[0].written
    assert run.kept == [1]


def test_a_last_checkpoint_that_does_not_get_to_the_disk_is_marked(
    run: Run, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EDQUOT, "disk quota exceeded")

    with run.saver:
        run.leave()
        run.leave()
        monkeypatch.setattr(os, "fsync", fail)
    assert run.rounds[0].unsaved == ""
    assert "cannot be written: [Errno 122] disk quota exceeded" in run.rounds[1].unsaved


def test_what_fails_at_the_end_does_not_hide_what_ended_the_run(run: Run) -> None:
    (run.logdir / "metrics.json").mkdir()

    def fail() -> None:
        with run.saver:
            run.leave()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
