"""Flower's `Strategy.start` and our exchange in turns, with one strategy, on one grid; seconds to a JSON file."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from server.exchange import exchange
from server.post import error_reason

app = ServerApp()
ARRAYS = ArrayRecord({"w": Array(np.zeros(10, np.float32))})


class Turns:
    """Both loops over `rounds` rounds, and how long messages took on their way."""

    def __init__(self, grid: Grid, nodes: int, rounds: int) -> None:
        self.grid = grid
        self.nodes = nodes
        self.rounds = rounds
        self.there: list[float] = []
        self.back: list[float] = []

    def fedavg(self, evaluates: bool) -> FedAvg:
        return FedAvg(
            fraction_train=1.0,
            fraction_evaluate=float(evaluates),
            min_train_nodes=self.nodes,
            min_evaluate_nodes=self.nodes if evaluates else 0,
            min_available_nodes=self.nodes,
        )

    def flower(self, evaluates: bool) -> None:
        self.fedavg(evaluates).start(self.grid, ARRAYS, num_rounds=self.rounds)

    def ours(self, evaluates: bool) -> None:
        strategy = self.fedavg(evaluates)
        for number in range(1, self.rounds + 1):
            messages = [*strategy.configure_train(number, ARRAYS, ConfigRecord(), self.grid)]
            strategy.aggregate_train(number, self.timed(messages))
            if evaluates:
                messages = [*strategy.configure_evaluate(number, ARRAYS, ConfigRecord(), self.grid)]
                strategy.aggregate_evaluate(number, self.timed(messages))

    def together(self) -> None:
        """The evaluation of a model and the training that starts from it, asked for at once."""
        strategy = self.fedavg(True)
        for number in range(1, self.rounds + 1):
            messages = [
                *strategy.configure_evaluate(number, ARRAYS, ConfigRecord(), self.grid),
                *strategy.configure_train(number, ARRAYS, ConfigRecord(), self.grid),
            ]
            for _ in self.timed(messages):
                pass

    def timed(self, messages: list[Message]) -> Iterator[Message]:
        pushed = time.time()
        for reply in exchange(self.grid, messages, 600.0):
            if reply.has_error():
                raise RuntimeError(error_reason(reply))
            (metrics,) = reply.content.metric_records.values()
            reached = float(metrics.pop("reached"))  # type: ignore[arg-type]
            self.there.append(reached - pushed)
            self.back.append(time.time() - reached)
            yield reply


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = {key: value for key, value in context.run_config.items() if isinstance(value, int)}
    turns = Turns(grid, config["nodes"], config["rounds"])
    turns.flower(False)  # everybody has connected, and has the app
    loops: dict[str, Callable[[], None]] = {
        "train: Flower": partial(turns.flower, False),
        "train: ours": partial(turns.ours, False),
        "train, then evaluate: Flower": partial(turns.flower, True),
        "train, then evaluate: ours": partial(turns.ours, True),
        "train and evaluate at once: ours": turns.together,
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(config["turns"]):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop()
            seconds[name].append((time.perf_counter() - started) / turns.rounds)
    result = {"seconds": seconds, "there": turns.there, "back": turns.back}
    Path(str(context.run_config["out"])).write_text(json.dumps(result))
