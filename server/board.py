"""TensorBoard's event file, written a round at a time and by nobody but the caller.

`torch.utils.tensorboard.SummaryWriter` writes from a thread of its own: a full disk ends that thread with a
stack trace and leaves half an event in the file. Here what cannot be written is kept, and written later.
"""

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, text

from weights.files import Growing

_NUMBERS = itertools.count()


class Board:
    """One event file in a folder.

    Args:
        logdir: TensorBoard's folder.
        first_step: TensorBoard hides what earlier files say of this step and of later ones.
    """

    def __init__(self, logdir: Path, first_step: int) -> None:
        # TensorBoard reads files in the order of their names.
        place = f"{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._file = Growing(logdir / f"events.out.tfevents.{place}")
        self._add(Event(file_version="brain.Event:2"), first_step)
        self._add(Event(session_log=SessionLog(status=SessionLog.START)), first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by tag, in one event: a round has some thirty."""
        numbers = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._add(Event(summary=Summary(value=numbers)), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Log a text."""
        self._add(Event(summary=text(tag, markdown)), step)  # type: ignore[no-untyped-call]

    def hyperparameters(self, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log a run's settings with the metrics that it ended with."""
        for summary in hparams(dict(settings), dict(metrics)):  # type: ignore[no-untyped-call]
            self._add(Event(summary=summary), 0)
        self.scalars(metrics, 0)

    def flush(self, *, durable: bool = False) -> None:
        """Append what has been logged to the file; arguments and errors are those of `Growing.flush`."""
        self._file.flush(durable=durable)

    def _add(self, event: Event, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        RecordWriter(self._file).write(event.SerializeToString())
