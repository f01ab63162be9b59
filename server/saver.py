"""What a round leaves behind: logs, then a checkpoint; a large one is written while the next round is under way."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from logging import WARNING
from pathlib import Path
from types import TracebackType

from flwr.supercore import log

from server.history import History
from server.record import Recorder, RoundRecord
from server.state import Checkpoint
from settings.errors import InputError
from weights.checkpoint import round_of, round_paths
from weights.files import sync

_KEPT = 3
_PAUSE = 1.0
"""Seconds between two rounds that are waited for until the disk has them, and between two writings of the JSON file."""
_SMALL = 2**20
"""Bytes of a model that is written in less time than another thread takes to get Python's lock again and again."""


class Saver:
    """Writes rounds' logs and checkpoints, one round at a time: they are behind by one round at most.

    The end of this process undoes nothing of it, the end of the machine at most the rounds of a second: once a second,
    or every round where that takes longer, the disk is waited for until it has TensorBoard's file, history and
    checkpoint, and the JSON file, which holds all rounds, is written. When the disk gets that is left to the system: a
    resumed run writes it anew. As a context manager it leaves all of it done.

    Args:
        folder: Of the checkpoints.
        recorder: Writes the logs: before the checkpoint, so that a round is never in that alone.
        rounds: The run's rounds; one without a checkpoint is put there anew, with the reason.
        kept: Bytes of the history that a resumed run goes on with.
    """

    def __init__(
        self, folder: Path, recorder: Recorder, rounds: list[RoundRecord], kept: int = 0
    ) -> None:
        self._folder = folder
        self._recorder = recorder
        self._rounds = rounds
        self._history = History(folder, kept)
        self._paths = [path for path in round_paths(folder) if round_of(path) <= len(rounds)]
        self._durable: Path | None = None
        self._due = 0.0
        self._pool = ThreadPoolExecutor(1, "saver")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self.wait()
        if self._paths:
            self._end(self._settle)
        with suppress(InputError):  # `error` is said, or what the run still has to write fails too
            self._recorder.write_json()

    def leave(self, record: RoundRecord, sample: str, checkpoint: Callable[[], Checkpoint]) -> None:
        """Write the last round, or begin to, once the one before has been written.

        Args:
            record: The round.
            sample: What the model writes after it.
            checkpoint: Copies what the next round will change.
        """
        self.wait()
        self._recorder.add(record, sample)
        self._history.add(record.exact)
        made = checkpoint()
        if made.num_bytes > _SMALL:
            self._writing = self._pool.submit(self._write, made)
        else:
            self._end(lambda: self._write(made))

    def wait(self) -> None:
        """Wait until what was begun is written; a full disk costs the checkpoint, and not the run."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            self._end(writing.result)

    def _end(self, write: Callable[[], None]) -> None:
        try:
            write()
        except InputError as error:
            record = replace(self._recorder.last, unsaved=str(error))
            log(WARNING, "round %d has no checkpoint, the run goes on: %s", record.round, error)
            self._rounds[record.round - 1] = record
            self._recorder.unsaved(record)
            self._history.add(record.exact)

    def _write(self, checkpoint: Checkpoint) -> None:
        due = time.monotonic() >= self._due
        self._recorder.flush(durable=due)
        if due:
            self._recorder.write_json()
        self._history.flush(durable=due)
        oldest = round_of(self._paths[0]) if self._paths else 0
        mark = self._history.mark
        path = checkpoint.write(self._folder, mark, oldest=oldest, durable=due)
        self._paths.append(path)
        if due:
            self._durable, self._due = path, time.monotonic() + _PAUSE
        self._drop()

    def _settle(self) -> None:
        """Wait until the disk has all that the last checkpoint needs."""
        self._recorder.flush(durable=True)
        self._history.flush(durable=True)
        sync(self._paths[-1])
        self._durable = None
        self._drop()

    def _drop(self) -> None:
        """Delete all checkpoints but the last few, and the last that the disk is known to have."""
        for old in [old for old in self._paths[:-_KEPT] if old != self._durable]:
            with suppress(OSError):  # it is in nobody's way
                old.unlink()
            self._paths.remove(old)
