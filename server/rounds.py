"""The round loop: from settings and a grid to a trained model."""

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.supercore import log
from torch import nn

from server.clock import Clock
from server.cohort import Cohort
from server.compression import DEFAULT_CODECS, make_aggregator
from server.console import Console
from server.directory import Directory
from server.evaluation import centralised_evaluation, federated_evaluation
from server.exchange import exchange
from server.initial import architecture_of, check_target, checkpoint_of, initial_model, save_final
from server.meter import Traffic
from server.record import Metrics, Recorder, RoundRecord, comm_record
from server.report import report
from server.saver import Saver
from server.state import (
    Checkpoint,
    KeepsStates,
    exclusive,
    forget,
    has_checkpoint,
    load_state,
    run_of,
    training_state,
)
from server.strategy import WeightedFedAvg
from settings.errors import InputError
from settings.schema import Settings
from tasks.catalogue import load_task
from tasks.data import Split
from tasks.stream import Stream
from tasks.task import Task
from weights.files import check_place, clear_temporaries
from weights.named import NamedArrays, arrays_of, load_arrays, trainable_names
from weights.optimizers import make_optimizer


class Federation:
    """A federation over a grid: `run` trains and records it as the settings say, `next` does one round.

    Attributes:
        task: The task.
        settings: The settings, with the task's own values where they leave something open.
        history: The rounds so far.

    Raises:
        InputError: Settings that do not fit the task, the data or the checkpoint.
    """

    def __init__(self, settings: Settings, grid: Grid) -> None:
        self.task = load_task(settings.task)
        self.settings = resolve(settings, self.task)
        self.grid = grid
        self.history: list[RoundRecord] = []
        self._model = initial_model(self.task, settings.init, settings.seed)
        self._directory = Directory.discover(grid, settings.min_available_nodes)
        self.cohort = Cohort(self._directory, settings)
        self.strategy = WeightedFedAvg(
            arrays_of(self._model),
            trainable_names(self._model),
            server_optimizer=settings.server_optimizer,
            weighting=settings.weighting,
            architecture=architecture_of(self._model),
            metrics=self.task.metrics,
            directory=self._directory,
            cohort=self.cohort,
            min_replies=settings.min_replies,
            batch_size=self.settings.batch_size,
            max_batches=settings.max_batches,
        )
        self.aggregator = make_aggregator(
            self.settings, self.strategy, trainable_names(self._model)
        )

    def run(self) -> None:
        """Train, and leave logs, checkpoints, the JSON file and the final model behind."""
        logdir = Path(self.settings.logdir)
        if self.settings.resume and not logdir.is_dir():
            raise InputError(f"nothing to resume: there is no folder {logdir}")
        if self.settings.eval_cohort and not self.settings.eval_every:
            raise InputError("--eval-cohort says who evaluates, --eval-every 0 that nobody does")
        with exclusive(logdir):
            self._run(logdir)

    def _run(self, logdir: Path) -> None:
        folder = logdir / "checkpoints"
        self.history, before, kept = self._start(folder)
        console = Console(self.settings, self.cohort, self.history)
        console.announce(self.task, self._sample(), before)
        recorder = Recorder(self.settings, logdir, [*self.history], before)
        recorder.flush()  # a place that cannot be written is said before any work is done
        recorder.write_json()
        with console, Saver(folder, recorder, self.history, kept) as saver:
            while len(self.history) < self.settings.rounds:
                record = self.next(console.watch)
                self._leave(saver, record, before)
                console.round_done(record)
        self._finish(recorder)
        console.conclude(self.history, before, self._sample())

    def _leave(self, saver: Saver, record: RoundRecord, before: Metrics) -> None:
        """Let a round's logs and checkpoint be written."""
        sample = self._sample() if record.eval else ""
        saver.leave(record, sample, lambda: self._checkpoint(before))

    def _finish(self, recorder: Recorder) -> None:
        """Write the final model and the closing logs.

        Raises:
            InputError: They cannot be written, or the model is nowhere: no `--save`, no checkpoint.
        """
        if self.settings.save:
            template = checkpoint_of(self.task, self.settings.init)
            save_final(self.model, Path(self.settings.save), template)
        elif self.history and self.history[-1].unsaved:
            raise InputError(f"the last round has no checkpoint: {self.history[-1].unsaved}")
        recorder.close()

    def _start(self, folder: Path) -> tuple[list[RoundRecord], Metrics, int]:
        """Rounds done, the initial model's evaluation, bytes of the history: none and fresh, or a checkpoint's."""
        clear_temporaries(folder.parent)
        # The same run on Flower: it was killed, and has been started again.
        goes_on = self.settings.resume or run_of(folder) == self.grid.run.run_id
        if has_checkpoint(folder) and goes_on:
            optimizer = self.strategy.optimizer
            weights, header = load_state(folder, self.settings, optimizer, self._nodes)
            self.strategy.load(weights)
            self.aggregator.load_state(header["aggregator"])
            log(INFO, "the run goes on after round %d", header["round"])
            rounds = [RoundRecord(**item) for item in header["rounds"]]
            return rounds, header["before"], header["history"]["bytes"]
        if has_checkpoint(folder):
            raise InputError(
                f"{folder.parent} already holds a run: give --resume to go on with it, "
                "or another --logdir"
            )
        if self.settings.resume:
            log(WARNING, "%s holds no checkpoint yet: the run starts from its beginning", folder)
        forget(folder)
        return [], self.evaluate() if self.settings.eval_every else {}, 0

    @property
    def _nodes(self) -> KeepsStates | None:
        """The grid, if its nodes' states are for the server to keep."""
        return self.grid if isinstance(self.grid, KeepsStates) else None

    def next(self, watch: Callable[[Iterable[Message]], Iterable[Message]] = iter) -> RoundRecord:
        """Train one more round, and evaluate if it is due: the record, which `history` gets too.

        Args:
            watch: Passes the replies on as they arrive; for a progress bar.

        Raises:
            InputError: Every client failed.
        """
        server_round = len(self.history) + 1
        clock, traffic, aggregator = Clock(), Traffic(), self.aggregator
        self._directory.refresh()
        clock.lap("discovering")
        arrays = self.strategy.arrays
        messages = list(aggregator.configure_train(server_round, arrays, ConfigRecord(), self.grid))
        traffic.count_sent(messages)
        replies = exchange(self.grid, messages, self.settings.deadline, self.cohort.enough)
        clock.lap("sending")
        watched = watch(traffic.count_received(clock.waiting(replies)))
        _, metrics = aggregator.aggregate_train(server_round, watched)
        clock.lap("computing")
        tally = self.strategy.tally
        tally.check(f"round {server_round}")
        comm = comm_record(tally, traffic, self.history)
        trained = dict(metrics or {})
        record = RoundRecord(server_round, trained, {}, comm, aggregator.measurements, 0.0)  # type: ignore[arg-type]
        self.history.append(record)
        every = self.settings.eval_every
        due = every and (server_round % every == 0 or server_round == self.settings.rounds)
        evaluated = self.evaluate() if due else {}
        clock.lap("evaluating")
        record = replace(record, eval=evaluated, seconds=clock.total, time=clock.seconds)
        self.history[-1] = record
        for line in report(record, tally):
            log(INFO, line)
        return record

    def evaluate(self, split: Split = "test") -> Metrics:
        """Finalized metrics of the model over the evaluation cohort, federated or centralised."""
        if self.settings.evaluation == "federated":
            done, deadline = len(self.history), self.settings.deadline
            return federated_evaluation(self.strategy, self.grid, done, split, deadline)
        population = self.task.population(self.settings.data, split)
        stream = Stream(
            self.settings.batch_size,
            drop_remainder=self.task.drop_remainder,
            max_batches=self.settings.eval_batches,
        )
        ids = self.cohort.evaluate()
        return centralised_evaluation(self.task, self.model, population, ids, stream)

    def _sample(self) -> str:
        """What the model writes now, for tasks that write."""
        if self.task.write_sample is None:
            return ""
        return self.task.write_sample(self.model, self.settings.seed)

    @property
    def model(self) -> nn.Module:
        """The global model as it is now; the next access overwrites it in place."""
        load_arrays(self._model, self.strategy.weights, "the global model")
        return self._model

    def state(self) -> NamedArrays:
        """What the next round starts from, and a checkpoint keeps.

        Returns:
            `weights/NAME`, `optimizer/INDEX/SLOT` (server optimizer; once it has taken a step) and
            `aggregator/NAME` (what zeroing, clipping and bit allocation have adapted).
        """
        arrays, scalars = training_state(self.strategy.weights, self.strategy.optimizer)
        single = {f"optimizer/{i}/{k}": v for i, slots in scalars.items() for k, v in slots.items()}
        single |= {f"aggregator/{name}": value for name, value in self.aggregator.state().items()}
        return arrays | {name: np.asarray(value) for name, value in single.items()}

    def _checkpoint(self, before: Metrics) -> Checkpoint:
        header: dict[str, Any] = {
            "settings": self.settings.to_config(),
            "run": self.grid.run.run_id,
            "architecture": architecture_of(self._model),
            "aggregator": self.aggregator.state(),
            "before": before,
        }
        weights, optimizer = self.strategy.weights, self.strategy.optimizer
        return Checkpoint(len(self.history), weights, optimizer, header, self._nodes)


def resolve(settings: Settings, task: Task) -> Settings:
    """Fill in the task's defaults, and check what can be checked before any work is done."""
    name = task.name.replace(":", "-")
    resolved = replace(
        settings,
        batch_size=settings.batch_size or task.batch_size,
        client_optimizer=settings.client_optimizer or task.client_optimizer,
        codec=settings.codec or DEFAULT_CODECS[settings.aggregator],
        logdir=settings.logdir or _unused(time.strftime(f"runs/{name}-%Y%m%d-%H%M%S")),
    )
    make_optimizer(resolved.client_optimizer, [torch.zeros(1)], "client optimizer")
    for path in filter(None, (settings.save, settings.json)):
        check_place(Path(path))
    if settings.save:
        check_target(Path(settings.save), checkpoint_of(task, settings.init))
    return resolved


def _unused(folder: str) -> str:
    """The folder, or the first one with a number behind it that is not there: runs may start in one second."""
    numbered = (f"{folder}-{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([folder], numbered) if not Path(name).exists())
