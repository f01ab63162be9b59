"""Writing behind the round that is under way."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from server.record import Recorder, RoundRecord
from server.saver import Saver
from server.state import Checkpoint
from settings.errors import InputError
from settings.schema import Settings


class Stub(Checkpoint):
    """Waits until it may be written, and may fail."""

    def __init__(self, error: Exception | None = None, *, held: bool = False) -> None:
        self.error = error
        self.free = threading.Event()
        self.written = False
        if not held:
            self.free.set()

    def write(self, folder: Path, mark: Any) -> Path:
        assert self.free.wait(20)
        if self.error is not None:
            raise self.error
        self.written = True
        return folder


class Run:
    """A saver with what it needs."""

    def __init__(self, logdir: Path) -> None:
        self.logdir = logdir
        self.rounds: list[RoundRecord] = []
        self.saver = Saver(
            logdir / "checkpoints", Recorder(Settings(), logdir, [], {}), self.rounds
        )

    def leave(self, checkpoint: Checkpoint) -> None:
        record = RoundRecord(len(self.rounds) + 1, {}, {}, {}, {}, 0.5)
        self.rounds.append(record)
        self.saver.leave(record, "", lambda: checkpoint)

    @property
    def written(self) -> list[int]:
        content = json.loads((self.logdir / "metrics.json").read_text())
        return [record["round"] for record in content["rounds"]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_the_disk_is_behind_by_one_round_at_most(run: Run) -> None:
    first, second = Stub(held=True), Stub(held=True)
    run.leave(first)
    assert not first.written  # and here the next round trains
    snapshots: list[bool] = []

    def second_round() -> None:
        run.rounds.append(RoundRecord(2, {}, {}, {}, {}, 0.5))

        def snapshot() -> Checkpoint:
            snapshots.append(first.written)
            return second

        run.saver.leave(run.rounds[-1], "", snapshot)

    waiting = threading.Thread(target=second_round)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    first.free.set()
    waiting.join(20)
    assert snapshots == [True]
    assert not second.written
    second.free.set()
    run.saver.wait()
    assert second.written


def test_a_round_that_cannot_be_written_is_said_with_the_next(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with run.saver:
        run.leave(Stub())
        run.leave(Stub(InputError("no space left")))
        assert [record.unsaved for record in run.rounds] == ["", ""]
        run.leave(Stub())
        assert [record.unsaved for record in run.rounds] == ["", "no space left", ""]
        run.leave(Stub(InputError("still none")))
    assert [record.unsaved for record in run.rounds] == ["", "no space left", "", "still none"]


def test_what_is_no_full_disk_ends_the_run(run: Run) -> None:
    run.leave(Stub(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run.saver.wait()
    run.saver.wait()


def test_a_stopped_run_leaves_all_its_rounds(run: Run) -> None:
    def stop() -> None:
        with run.saver:
            for _ in range(3):
                run.leave(Stub())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert run.written == [1, 2, 3]


def test_the_end_waits_for_the_last_round(run: Run) -> None:
    last = Stub(held=True)
    threading.Timer(0.2, last.free.set).start()
    with run.saver:
        run.leave(last)
    assert last.written
