"""A strategy over clients that answer as they are told."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from server.cohort import Cohort
from server.directory import Directory
from server.exchange import exchange
from server.strategy import WeightedFedAvg
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.metrics import ACCURACY
from weights.named import NamedArrays, fingerprint
from weights.wire import pack, unpack

Content = RecordDict | Exception


Answer = Content | Callable[[Message], Content]


WEIGHTS: NamedArrays = {
    "w": np.array([1.0, 2.0], np.float32),
    "b": np.array(3.0, np.float32),
    "seen": np.array(5, np.int64),
}


def update(*w: float, b: float = 0.0) -> NamedArrays:
    return {"w": np.array(w, np.float32), "b": np.array(b, np.float32)}


def sums(examples: float, loss: float = 1.0, correct: float = 0.0) -> dict[str, Any]:
    return {
        "num-examples": int(examples),
        "loss": [float(loss * examples), float(examples)],
        "accuracy": [float(correct), float(examples)],
        "num_examples": [float(examples)],
        "num_batches": [1.0],
    }


def reply(arrays: NamedArrays | ArrayRecord, metrics: dict[str, Any]) -> RecordDict:
    record = arrays if isinstance(arrays, ArrayRecord) else pack(arrays)
    return RecordDict({"arrays": record, "metrics": MetricRecord(metrics)})


def good(value: float = 1.0, examples: int = 1) -> RecordDict:
    return reply(update(value, value, b=value), sums(examples))


EMPTY = reply({}, {"num-examples": 0})


DEFAULTS: dict[str, Any] = {
    "server_optimizer": "sgd:lr=1.0",
    "weighting": "examples",
    "metrics": {"accuracy": ACCURACY},
}


def client_app(answers: Mapping[str, Answer]) -> ClientApp:
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        content = answers[str(message.content.config_records["config"]["client-id"])]
        content = content(message) if callable(content) else content
        if isinstance(content, Exception):
            raise content
        return Message(content, reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


class Rounds:
    """A strategy over clients that answer as told."""

    def __init__(self, answers: Mapping[str, Answer], **options: Any) -> None:
        self.grid = InProcessGrid(client_app(answers), {})
        node = self.grid.get_node_ids()[0]
        directory = Directory(self.grid, dict.fromkeys(sorted(answers), node))
        self.strategy = WeightedFedAvg(
            WEIGHTS,
            ["w", "b"],
            **{**DEFAULTS, **options},
            architecture="",
            directory=directory,
            cohort=Cohort(directory, Settings(cohort="all")),
        )

    def train(self, change: Callable[[list[Message]], list[Message]] = list) -> dict[str, Any]:
        arrays = pack(self.strategy.weights)
        messages = self.strategy.configure_train(1, arrays, ConfigRecord(), self.grid)
        replies = change(list(exchange(self.grid, messages, 5)))
        returned, metrics = self.strategy.aggregate_train(1, replies)
        assert returned is not None
        weights = unpack(returned, like=WEIGHTS)
        assert fingerprint(weights) == fingerprint(self.strategy.weights)
        return dict(metrics or {})

    def evaluate(self) -> dict[str, Any] | None:
        arrays = pack(self.strategy.weights)
        messages = self.strategy.configure_evaluate(1, arrays, ConfigRecord(), self.grid)
        metrics = self.strategy.aggregate_evaluate(1, exchange(self.grid, messages, 5))
        return None if metrics is None else dict(metrics)

    @property
    def w(self) -> list[float]:
        return [float(value) for value in self.strategy.weights["w"]]
