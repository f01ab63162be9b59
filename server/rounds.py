"""The round loop: from settings and a grid to a trained model."""

import time
from dataclasses import asdict, replace
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from flwr.supercore import log

from server.cohort import Cohort, Directory
from server.compression import DEFAULT_CODECS, make_aggregator
from server.console import Console
from server.evaluation import (
    centralised_evaluation,
    check_answers,
    federated_evaluation,
)
from server.exchange import exchange
from server.initial import architecture_of, check_target, checkpoint_of, initial_model, save_final
from server.meter import Traffic
from server.record import Metrics, Recorder, RoundRecord, comm_record
from server.state import (
    KeepsStates,
    exclusive,
    forget,
    has_checkpoint,
    load_state,
    run_of,
    save_state,
)
from server.strategy import WeightedFedAvg
from settings.errors import InputError
from settings.schema import Settings
from tasks.catalogue import load_task
from tasks.data import Split
from tasks.stream import Stream
from tasks.task import Task
from weights.checkpoint import clear_temporaries
from weights.named import arrays_of, load_arrays, trainable_names
from weights.optimizers import make_optimizer
from weights.wire import pack


class Federation:
    """One run: rounds of training and evaluation over a grid, recorded.

    Raises:
        InputError: Settings that do not fit the task, the data or the checkpoint.
    """

    def __init__(self, settings: Settings, grid: Grid) -> None:
        self.task = load_task(settings.task)
        self.settings = resolve(settings, self.task)
        self.grid = grid
        self.model = initial_model(self.task, settings.init, settings.seed)
        directory = Directory.discover(grid)
        self.cohort = Cohort(directory, settings)
        self.strategy = WeightedFedAvg(
            arrays_of(self.model),
            trainable_names(self.model),
            server_optimizer=settings.server_optimizer,
            weighting=settings.weighting,
            architecture=architecture_of(self.model),
            metrics=self.task.metrics,
            directory=directory,
            cohort=self.cohort,
            min_replies=settings.min_replies,
        )
        self.aggregator = make_aggregator(self.settings, self.strategy, trainable_names(self.model))

    def run(self) -> None:
        """Train, and leave logs, checkpoints, the JSON file and the final model behind."""
        logdir = Path(self.settings.logdir)
        if self.settings.resume and not logdir.is_dir():
            raise InputError(f"nothing to resume: there is no folder {logdir}")
        with exclusive(logdir):
            self._run(logdir)

    def _run(self, logdir: Path) -> None:
        history, before = self._start(logdir / "checkpoints")
        console = Console(self.settings, self.cohort.enough, history)
        console.announce(self.task, self._sample(), before)
        recorder = Recorder(self.settings, logdir, history, before)
        with console:
            for server_round in range(len(history) + 1, self.settings.rounds + 1):
                record = self._round(server_round, recorder.history, console)
                recorder.add(record, self._sample() if record.eval else "")
                self._checkpoint(logdir / "checkpoints", server_round, recorder)
                console.round_done(record)
        recorder.close()
        if self.settings.save:
            self._synchronise()
            template = checkpoint_of(self.task, self.settings.init)
            save_final(self.model, Path(self.settings.save), template)
        console.conclude(recorder.history, before, self._sample())

    def _start(self, folder: Path) -> tuple[list[RoundRecord], Metrics]:
        """Rounds done so far and the initial model's evaluation: empty and fresh, or a checkpoint's."""
        clear_temporaries(folder.parent)
        # The same run on Flower: it was killed, and has been started again.
        ours = run_of(folder) == self.grid.run.run_id
        if has_checkpoint(folder) and (self.settings.resume or ours):
            optimizer = self.strategy.optimizer
            weights, header = load_state(folder, self.settings, optimizer, self._nodes)
            self.strategy.load(weights)
            self.aggregator.load_state(header["aggregator"])
            log(INFO, "the run goes on after round %d", header["round"])
            return [RoundRecord(**item) for item in header["rounds"]], header["before"]
        if has_checkpoint(folder):
            raise InputError(
                f"{folder.parent} already holds a run: give --resume to go on with it, "
                "or another --logdir"
            )
        if self.settings.resume:
            log(WARNING, "%s holds no checkpoint yet: the run starts from its beginning", folder)
        forget(folder)
        return [], self.evaluate(0) if self.settings.eval_every else {}

    @property
    def _nodes(self) -> KeepsStates | None:
        """The grid, if its nodes' states are for the server to keep."""
        return self.grid if isinstance(self.grid, KeepsStates) else None

    def _round(
        self, server_round: int, history: list[RoundRecord], console: Console
    ) -> RoundRecord:
        started = time.perf_counter()
        arrays = pack(self.strategy.weights)
        aggregator = self.aggregator
        messages = list(aggregator.configure_train(server_round, arrays, ConfigRecord(), self.grid))
        traffic = Traffic()
        traffic.count_sent(messages)
        deadline = float(self.settings.deadline)
        replies = exchange(self.grid, messages, deadline, self.cohort.enough)
        watched = console.watch(traffic.count_received(replies))
        _, metrics = aggregator.aggregate_train(server_round, watched)
        check_answers(self.strategy, f"round {server_round}")
        comm = comm_record(self.strategy.tally, traffic, history)
        every = self.settings.eval_every
        due = every and (server_round % every == 0 or server_round == self.settings.rounds)
        evaluated = self.evaluate(server_round) if due else {}
        seconds = time.perf_counter() - started
        return RoundRecord(
            server_round,
            dict(metrics or {}),  # type: ignore[arg-type]
            evaluated,
            comm,
            aggregator.measurements,
            seconds,
        )

    def evaluate(self, server_round: int, split: Split = "test") -> Metrics:
        """Finalized metrics of the model over the evaluation cohort, federated or centralised."""
        if self.settings.evaluation == "federated":
            arrays = pack(self.strategy.weights)
            deadline = float(self.settings.deadline)
            return federated_evaluation(
                self.strategy, self.grid, arrays, server_round, split, deadline
            )
        self._synchronise()
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
        self._synchronise()
        return self.task.write_sample(self.model, self.settings.seed)

    def _synchronise(self) -> None:
        load_arrays(self.model, self.strategy.weights, "the global model")

    def _checkpoint(self, folder: Path, server_round: int, recorder: Recorder) -> None:
        header: dict[str, Any] = {
            "settings": self.settings.to_config(),
            "run": self.grid.run.run_id,
            "architecture": architecture_of(self.model),
            "aggregator": self.aggregator.state(),
            "before": recorder.before,
            "rounds": [asdict(record) for record in recorder.history],
        }
        weights, optimizer = self.strategy.weights, self.strategy.optimizer
        save_state(folder, server_round, weights, optimizer, header, self._nodes)


def resolve(settings: Settings, task: Task) -> Settings:
    """Fill in the task's defaults, and check what can be checked before any work is done."""
    name = task.name.replace(":", "-")
    resolved = replace(
        settings,
        batch_size=settings.batch_size or task.batch_size,
        client_optimizer=settings.client_optimizer or task.client_optimizer,
        codec=settings.codec or DEFAULT_CODECS[settings.aggregator],
        logdir=settings.logdir or time.strftime(f"runs/{name}-%Y%m%d-%H%M%S"),
    )
    make_optimizer(resolved.client_optimizer, [torch.zeros(1)], "client optimizer")
    if settings.save:
        check_target(Path(settings.save), checkpoint_of(task, settings.init))
    return resolved
