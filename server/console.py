"""What a person sees of a run: a progress bar on a terminal, plain lines in a pipe, a closing table."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from errno import EPIPE
from logging import WARNING
from types import TracebackType
from typing import TextIO

from flwr.app import Message
from flwr.supercore import log
from flwr.supercore.logger import console_handler
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from server.cohort import Cohort
from server.record import Metrics, RoundRecord
from server.table import closing_table
from settings.errors import counted
from settings.schema import Settings
from tasks.task import Task

_WIDTH = 80


class _Output(RichConsole):
    def on_broken_pipe(self) -> None:
        """Raise what rich would end the process for."""
        raise BrokenPipeError(EPIPE, os.strerror(EPIPE))


def output() -> RichConsole:
    """Standard output, 80 columns wide at most."""
    out = _Output(highlight=False)
    if out.width > _WIDTH or not out.is_terminal:
        out.width = _WIDTH
    return out


class Console:
    """Shows a run on standard output.

    Args:
        settings: The run's settings, as resolved.
        cohort: Who takes part.
        history: Rounds done before this process.
    """

    def __init__(self, settings: Settings, cohort: Cohort, history: Sequence[RoundRecord]) -> None:
        self._settings = settings
        self._cohort = cohort
        self._clients = clients = cohort.enough
        self._out = output()
        self._progress = Progress(
            TextColumn("round {task.fields[round]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} clients {task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self._out,
            disable=not self._out.is_terminal,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._log_to: TextIO | None = None
        self._done = done = len(history)
        self._bar = self._progress.add_task(
            "",
            total=settings.rounds * clients,
            completed=done * clients,
            round=f"{min(done + 1, settings.rounds)}/{settings.rounds}",
            metrics="",
        )

    def __enter__(self) -> "Console":
        self._progress.start()
        if not self._progress.disable:
            # What is logged goes above the bar, which has taken the place of standard error.
            self._log_to = console_handler.setStream(sys.stderr)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._log_to is not None:
            console_handler.setStream(self._log_to)
        if kind is KeyboardInterrupt:
            again = f"--logdir {self._settings.logdir} --resume"
            self._print(f"stopped; the same command with {again} goes on", soft_wrap=True)

    def announce(self, task: Task, sample: str, before: Metrics) -> None:
        """Say what is going to run, and how the model does before it."""
        settings = self._settings
        self._print(
            f"{task.name}: {counted(settings.rounds, 'round')}, "
            f"{self._counted(self._clients, ' a round')}, "
            f"batch {settings.batch_size}, {settings.client_optimizer} on clients, "
            f"{settings.server_optimizer} on the server",
            soft_wrap=True,
        )
        if self._done:
            held = f"{settings.logdir} holds {counted(self._done, 'round')}"
            left = self._done < settings.rounds
            then = f"goes on with round {self._done + 1}" if left else "no more --rounds to do"
            self._print(f"{held}: {then}", soft_wrap=True)
        if before:
            number = len(self._cohort.evaluate())
            whose = f" of {self._counted(number)}" if settings.eval_cohort else ""
            self._print(f"before: {describe(before)} on held-out data{whose}", soft_wrap=True)
        self._panel(sample, "written before")

    def _counted(self, clients: int, when: str = "") -> str:
        everybody = " (all there are)" if self._cohort.is_everybody(clients) else ""
        return f"{counted(clients, 'client')}{when}{everybody}"

    def watch(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass replies on and advance the bar with each."""
        for reply in replies:
            yield reply
            self._progress.advance(self._bar)

    def round_done(self, record: RoundRecord) -> None:
        """Show a round's metrics."""
        shown = describe(record.eval or record.train)
        rounds = self._settings.rounds
        if self._progress.disable:
            said = f"train {describe(record.train)}"
            if record.eval:
                said += f" | held-out {describe(record.eval)}"
            self._print(
                f"round {record.round}/{rounds}: {said} | {record.seconds:.1f} s", soft_wrap=True
            )
        following = min(record.round + 1, rounds)
        self._progress.update(
            self._bar,
            completed=record.round * self._clients,
            round=f"{following}/{rounds}",
            metrics=shown,
        )

    def conclude(self, history: Sequence[RoundRecord], before: Metrics, sample: str) -> None:
        """Print the closing table, what the model writes now, and where everything is."""
        self._print(closing_table(history, self._out.width), soft_wrap=True)
        self._panel(sample, "written after")
        after = history[-1].eval if history else {}
        if before and after:
            self._print(f"held-out data before: {describe(before)}")
            self._print(f"held-out data after:  {describe(after)}")
        settings = self._settings
        if settings.save:
            self._print(f"model:       {settings.save}", soft_wrap=True)
        if settings.json:
            self._print(f"metrics:     {settings.json}", soft_wrap=True)
        self._print(f"TensorBoard: tensorboard --logdir {settings.logdir}", soft_wrap=True)

    def _print(self, *what: RenderableType, soft_wrap: bool = False) -> None:
        """Print; a full disk or a closed pipe costs what is said from then on, and not the run."""
        try:
            self._out.print(*what, soft_wrap=soft_wrap)
        except OSError as error:
            log(WARNING, "standard output cannot be written, the run goes on: %s", error)
            # What waits in a buffer would fail again at the end of the process.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.file.fileno())

    def _panel(self, text: str, title: str) -> None:
        if text:
            self._print(Panel(Text(text), title=title, title_align="left"))


def describe(metrics: Metrics) -> str:
    """`loss 2.1603, accuracy 0.4418`: the values, without the counts."""
    values = {name: value for name, value in metrics.items() if not name.startswith("num_")}
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items()) or "no data"
