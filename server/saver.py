"""What a round leaves behind is written while the next one is under way: training need not wait for the disk."""

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


class Saver:
    """Writes rounds' logs and checkpoints, one round at a time: the disk is behind by one at most.

    As a context manager it waits for the last one; a run that is stopped leaves a JSON file that has it.

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
        if kind is not None:
            with suppress(InputError):
                self._recorder.write_json()

    def leave(self, record: RoundRecord, sample: str, checkpoint: Callable[[], Checkpoint]) -> None:
        """Begin to write the last round, once the one before has been written.

        Args:
            record: The round.
            sample: What the model writes after it.
            checkpoint: Copies what the next round will change.
        """
        self.wait()
        self._recorder.add(record, sample)
        self._history.add(record.exact)
        self._writing = self._pool.submit(self._write, checkpoint())

    def _write(self, checkpoint: Checkpoint) -> None:
        self._recorder.write()
        self._history.flush()
        checkpoint.write(self._folder, self._history.mark)

    def wait(self) -> None:
        """Wait until what was begun is written; a full disk costs the checkpoint, and not the run."""
        if self._writing is None:
            return
        try:
            self._writing.result()
        except InputError as error:
            record = replace(self._recorder.last, unsaved=str(error))
            log(WARNING, "round %d has no checkpoint, the run goes on: %s", record.round, error)
            self._rounds[record.round - 1] = record
            self._recorder.unsaved(record)
            self._history.add(record.exact)
        finally:
            self._writing = None
