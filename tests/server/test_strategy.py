"""Weighted federated averaging: the arithmetic, and what becomes of replies that are not as they should be."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from server.cohort import Cohort
from server.directory import Directory
from server.exchange import exchange
from server.strategy import WeightedFedAvg
from settings.errors import InputError
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.metrics import ACCURACY, Metric
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


def test_weighted_mean_by_hand() -> None:
    answers = {
        "a": reply(update(1.0, 0.0, b=2.0), sums(1, loss=4.0, correct=1)),
        "b": reply(update(0.0, 4.0, b=-2.0), {**sums(3, loss=2.0), "num_batches": [2.0]}),
    }
    rounds = Rounds(answers)
    metrics = rounds.train()
    assert rounds.w == [1 - 1 / 4, 2 - 12 / 4]
    assert float(rounds.strategy.weights["b"]) == 3 - (2 - 6) / 4
    assert int(rounds.strategy.weights["seen"]) == 5
    assert metrics == {"loss": (4 + 6) / 4, "accuracy": 1 / 4, "num_examples": 4, "num_batches": 3}
    tally = rounds.strategy.tally
    assert (tally.asked, tally.answered, tally.failed) == (2, 2, {})


def test_uniform_weighting() -> None:
    answers = {"a": good(1.0, examples=1), "b": good(4.0, examples=9)}
    rounds = Rounds(answers, weighting="uniform")
    metrics = rounds.train()
    assert rounds.w == [1 - 2.5, 2 - 2.5]
    # Metrics still describe examples.
    assert metrics["num_examples"] == 10


def test_server_learning_rate() -> None:
    rounds = Rounds({"a": good(2.0)}, server_optimizer="sgd:lr=0.5")
    rounds.train()
    assert rounds.w == [0.0, 1.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_update_has_weight_zero(bad: float) -> None:
    answers = {
        "a": good(1.0, examples=2),
        "b": reply(update(0.0, 0.0, b=bad), sums(1000)),
    }
    rounds = Rounds(answers)
    metrics = rounds.train()
    assert rounds.w == [0.0, 1.0]
    # Its metrics count all the same, as in TFF.
    assert metrics["num_examples"] == 1002
    tally = rounds.strategy.tally
    assert (tally.non_finite, tally.answered, tally.failed) == (1, 2, {})


def test_only_non_finite_updates_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rounds = Rounds({"a": reply(update(np.nan, 1.0), sums(3))}, server_optimizer="adam:lr=0.1")
    assert rounds.train()["num_examples"] == 3
    assert rounds.w == [1.0, 2.0]
    assert rounds.strategy.optimizer.state_dict()["state"] == {}
    assert "updates not finite, which count for nothing: 1" in caplog.text


def test_a_non_finite_mean_leaves_weights_and_optimizer() -> None:
    """Each update is finite, but float32 cannot hold weight times update."""
    huge: list[RecordDict] = []

    def answer(message: Message) -> RecordDict:
        return huge[0] if huge else good(1.0)

    rounds = Rounds({"a": answer}, server_optimizer="adam:lr=0.1")
    rounds.train()
    before = fingerprint(rounds.strategy.weights)
    state = str(rounds.strategy.optimizer.state_dict())
    huge.append(reply(update(3e38, 0.0), sums(10)))
    rounds.train()
    assert fingerprint(rounds.strategy.weights) == before
    assert str(rounds.strategy.optimizer.state_dict()) == state
    assert rounds.strategy.tally.update_non_finite == 1
    assert rounds.strategy.tally.non_finite == 0
    huge.clear()
    rounds.train()
    assert fingerprint(rounds.strategy.weights) != before
    assert rounds.strategy.tally.update_non_finite == 0


def test_an_empty_client_counts_as_answered() -> None:
    rounds = Rounds({"a": good(1.0, examples=2), "b": EMPTY})
    metrics = rounds.train()
    assert rounds.w == [0.0, 1.0]
    assert metrics["num_examples"] == 2
    tally = rounds.strategy.tally
    assert (tally.answered, tally.empty, tally.failed) == (2, 1, {})


def test_nobody_has_data() -> None:
    rounds = Rounds({"a": EMPTY, "b": EMPTY}, server_optimizer="sgd:lr=1.0,momentum=0.9")
    assert rounds.train() == {}
    assert rounds.w == [1.0, 2.0]
    assert rounds.strategy.optimizer.state_dict()["state"] == {}
    assert rounds.strategy.tally.largest_share == 0
    # Flower keeps what is not None.
    assert rounds.evaluate() is None


def encoded() -> ArrayRecord:
    record = pack(update(1.0, 1.0))
    b = record["b"]
    record["b"] = Array(b.dtype, b.shape, "fedferry.uniform8", b.data)
    return record


REFUSED: dict[str, tuple[Answer, str]] = {
    "exception": (RuntimeError("no\nGPU"), "GPU"),
    "shape": (reply(update(1.0, 1.0, 1.0), sums(1)), r"w is float32\[3\], not float32\[2\]"),
    "dtype": (
        reply({**update(1.0, 1.0), "b": np.array(1.0)}, sums(1)),
        r"b is float64\[\], not float32\[\]",
    ),
    "missing": (reply({"w": update(1, 1)["w"]}, sums(1)), "arrays missing or unknown: b"),
    "unknown": (reply({**update(1, 1), "x": np.ones(1)}, sums(1)), "missing or unknown: x"),
    "not trained": (reply({**update(1, 1), "seen": np.array(1)}, sums(1)), "unknown: seen"),
    "encoded": (reply(encoded(), sums(1)), "b is encoded as 'fedferry.uniform8'"),
    "no arrays": (
        RecordDict({"metrics": MetricRecord(sums(1))}),
        r"0 records of kind \w+Record, not one",
    ),
    "no metrics": (
        RecordDict({"arrays": pack(update(1, 1))}),
        r"0 records of kind \w+Record, not one",
    ),
    "two records": (
        RecordDict(
            {
                "arrays": pack(update(1, 1)),
                "more": pack(update(1, 1)),
                "metrics": MetricRecord(sums(1)),
            }
        ),
        "2 records of kind ArrayRecord, not one",
    ),
    "scalar metric": (reply(update(1, 1), {**sums(1), "loss": 3.0}), "loss is not a list of sums"),
    "no count": (reply(update(1, 1), {"loss": [1.0, 1.0]}), "how many examples"),
    "negative count": (reply(update(1, 1), {**sums(1), "num_examples": [-1.0]}), "how many"),
    "nan count": (reply(update(1, 1), {**sums(1), "num_examples": [float("nan")]}), "how many"),
    "endless count": (reply(update(1, 1), {**sums(1), "num_examples": [float("inf")]}), "how many"),
    "no loss": (
        reply(update(1, 1), {key: value for key, value in sums(1).items() if key != "loss"}),
        "loss",
    ),
    "no accuracy": (
        reply(update(1, 1), {key: value for key, value in sums(1).items() if key != "accuracy"}),
        "accuracy",
    ),
    "metric too many": (reply(update(1, 1), {**sums(1), "f1": [1.0, 2.0]}), "f1"),
    "no sums": (reply(update(1, 1), {**sums(1), "accuracy": []}), "accuracy has 0 sums, not"),
    "loss of one sum": (reply(update(1, 1), {**sums(1), "loss": [1.0]}), "loss has 1 sums, not 2"),
    "other number of sums": (reply(update(1, 1), {**sums(1), "accuracy": [1.0]}), "accuracy"),
    "a thousand sums": (
        reply(update(1, 1), {**sums(1), "accuracy": [1.0] * 1000}),
        "has 1000 sums",
    ),
    "a thousand metrics": (
        reply(update(1, 1), sums(1) | {f"m{n:03}": [1.0] for n in range(1000)}),
        "m000, m001, m002 and 997 more",
    ),
    "a giant name": (reply(update(1, 1), {**sums(1), "x" * 10**6: [1.0]}), r"x{200} \.\.\.$"),
    "too many examples": (
        reply(update(1, 1), sums(10**12)),
        "claims 1000000000000 examples in 1 batches of 8 at most",
    ),
    "too many batches": (
        reply(update(1, 1), {**sums(80), "num_batches": [10.0]}),
        "claims 10 batches: more than --max-batches",
    ),
    "no batches": (reply(update(1, 1), {**sums(1), "num_batches": [0.0]}), "how many batches"),
    "half an example": (reply(update(1, 1), {**sums(1), "num_examples": [0.5]}), "how many"),
    "two counts": (reply(update(1, 1), {**sums(2), "num-examples": 3}), "2 examples, or 3"),
}


NAMED = [(kind, name) for kind in REFUSED for name in "az"]


@pytest.mark.parametrize(("kind", "bad"), NAMED)
def test_what_is_refused_is_said_and_does_not_count(kind: str, bad: str) -> None:
    answer, said = REFUSED[kind]
    answers = {bad: answer, "m": good(1.0, examples=2), "n": good(1.0, examples=2)}
    rounds = Rounds(answers, batch_size=8, max_batches=9)
    metrics = rounds.train()
    tally = rounds.strategy.tally
    assert list(tally.failed) == [bad]
    assert re.search(said, tally.failed[bad])
    assert "\n" not in tally.failed[bad]
    assert len(tally.failed[bad]) < 400
    assert (tally.asked, tally.answered) == (3, 2)
    assert rounds.w == [0.0, 1.0]
    assert metrics == {"loss": 1.0, "accuracy": 0.0, "num_examples": 4, "num_batches": 2}


def rmse(value: list[float]) -> RecordDict:
    said = {key: value for key, value in sums(2).items() if key != "accuracy"}
    return reply(update(1.0, 1.0), {**said, "rmse": value})


def test_the_first_reply_does_not_say_how_many_sums_a_metric_has() -> None:
    root = Metric(lambda outputs, batch: [0.0] * 3, lambda sums: math.sqrt(sums[0]), num_sums=3)
    answers = {"a": rmse([1.0] * 4), "b": rmse([2.0, 0.0, 0.0]), "c": rmse([7.0, 0.0, 0.0])}
    rounds = Rounds(answers, metrics={"rmse": root})
    assert rounds.train()["rmse"] == 3.0
    assert list(rounds.strategy.tally.failed) == ["a"]


@pytest.mark.parametrize(
    "root", [math.sqrt, lambda value: value**0.5, lambda value: 1 / (1 + value)]
)
def test_a_metric_without_a_value_for_what_a_client_claims_is_nan(
    root: Callable[[float], float], caplog: pytest.LogCaptureFixture
) -> None:
    rounds = Rounds(
        {"a": rmse([-1.0, 2.0])},
        metrics={"rmse": Metric(lambda outputs, batch: [0.0] * 2, lambda sums: root(sums[0]))},
    )
    metrics = rounds.train()
    assert math.isnan(metrics["rmse"])
    assert (metrics["loss"], rounds.w) == (1.0, [0.0, 1.0])
    assert "metric rmse has no value for the sums [-1.0, 2.0]" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_left_out_unless_all_are(bad: float) -> None:
    odd = reply(update(3.0, 3.0), sums(2, loss=bad))
    rounds = Rounds({"a": odd, "b": good(1.0, examples=1), "c": good(1.0, examples=1)})
    metrics = rounds.train()
    assert rounds.w == [-1.0, 0.0]  # the update itself is finite, and counts
    assert metrics == {"loss": 1.0, "accuracy": 0.0, "num_examples": 2, "num_batches": 2}
    assert rounds.strategy.tally.metrics_non_finite == 1
    said = {"a": sums(2, loss=bad), "b": sums(1), "c": sums(1)}
    evaluated = Rounds({name: reply({}, each) for name, each in said.items()})
    assert evaluated.evaluate() == metrics
    assert evaluated.strategy.tally.metrics_non_finite == 1
    diverged = Rounds({"a": odd, "b": odd})
    assert not math.isfinite(diverged.train()["loss"])


def test_a_reply_from_another_node_is_refused() -> None:
    rounds = Rounds({"a": good(1.0), "b": good(3.0)})

    def forged(replies: list[Message]) -> list[Message]:
        replies[0].metadata.__dict__["_src_node_id"] = 99
        return replies

    rounds.train(forged)
    assert rounds.w == [1 - 3.0, 2 - 3.0]
    assert "node 99 answered in its place" in rounds.strategy.tally.failed["a"]


def test_the_largest_share_is_measured() -> None:
    rounds = Rounds({"a": good(1.0, examples=1), "b": good(1.0, examples=3)})
    rounds.train()
    assert rounds.strategy.tally.largest_share == 0.75


def test_reasons_of_many_failures_are_counted_and_the_first_kept() -> None:
    rounds = Rounds({f"c{n:03}": RuntimeError("x" * 1000) for n in range(120)} | {"z": good()})
    rounds.train()
    assert rounds.strategy.tally.failures == 120
    assert len(rounds.strategy.tally.failed) == 100
    assert all(len(reason) < 400 for reason in rounds.strategy.tally.failed.values())
    rounds.strategy.tally.check("round 1")
    everybody = Rounds({f"c{n:03}": RuntimeError("no memory") for n in range(120)})
    everybody.train()
    with pytest.raises(InputError, match=r"^round 1: all 120 clients failed; c000: .*no memory"):
        everybody.strategy.tally.check("round 1")


def test_the_model_is_packed_once_until_it_changes() -> None:
    rounds = Rounds({"a": good(1.0)})
    first = rounds.strategy.arrays
    assert rounds.strategy.arrays is first
    rounds.train()
    assert rounds.strategy.arrays is not first
    weights = unpack(rounds.strategy.arrays, like=WEIGHTS)
    assert fingerprint(weights) == fingerprint(rounds.strategy.weights)
    rounds.strategy.load(WEIGHTS)
    assert fingerprint(unpack(rounds.strategy.arrays, like=WEIGHTS)) == fingerprint(WEIGHTS)


def test_duplicate_and_unknown_replies_are_dropped() -> None:
    rounds = Rounds({"a": good(1.0), "b": good(3.0)})
    stranger = next(iter(exchange(rounds.grid, other_messages(rounds), 5)))

    def twice(replies: list[Message]) -> list[Message]:
        return [stranger, *replies, replies[0], replies[0], stranger]

    metrics = rounds.train(twice)
    assert rounds.w == [1 - 2.0, 2 - 2.0]
    assert metrics["num_examples"] == 2
    assert rounds.strategy.tally.answered == 2


def other_messages(rounds: Rounds) -> list[Message]:
    """Those of a round that nobody waits for any more."""
    arrays = pack(rounds.strategy.weights)
    return rounds.strategy.configure_train(1, arrays, ConfigRecord(), rounds.grid)[:1]


def test_missing_replies_are_counted() -> None:
    rounds = Rounds({"a": good(1.0), "b": good(3.0)})
    rounds.train(lambda replies: replies[:1])
    assert rounds.strategy.tally.late == ["b"]
    assert rounds.strategy.tally.failed == {}
    assert rounds.w == [0.0, 1.0]


def test_a_round_with_too_few_replies_is_skipped() -> None:
    rounds = Rounds({"a": good(1.0), "b": EMPTY, "c": good(1.0)}, min_replies=3)
    rounds.train(lambda replies: replies[:2])
    assert rounds.w == [1.0, 2.0]
    assert rounds.strategy.tally.skipped == 1
    rounds.train()  # an answer without data is one
    assert rounds.w == [0.0, 1.0]
    assert rounds.strategy.tally.skipped == 0
    by_default = Rounds({"a": good(1.0)})
    by_default.train(lambda replies: [])
    assert by_default.strategy.tally.skipped == 1


def test_a_round_begins_with_the_arrays_that_it_is_given() -> None:
    """As Flower's loop hands them in."""
    rounds = Rounds({"a": good(1.0)})
    other = {**WEIGHTS, "w": np.array([5.0, 7.0], np.float32)}
    messages = rounds.strategy.configure_train(1, pack(other), ConfigRecord(), rounds.grid)
    rounds.strategy.aggregate_train(1, exchange(rounds.grid, messages, 5))
    assert rounds.w == [4.0, 6.0]


def test_replies_are_consumed_one_by_one() -> None:
    """A reply is read, and forgotten, before the next one is asked for."""
    rounds = Rounds({name: good(1.0) for name in "abc"})
    arrays = pack(rounds.strategy.weights)
    messages = rounds.strategy.configure_train(1, arrays, ConfigRecord(), rounds.grid)
    replies = exchange(rounds.grid, messages, 5)
    answered: list[int] = []

    def watched() -> Iterator[Message]:
        for message in replies:
            answered.append(rounds.strategy.tally.answered)
            yield message

    rounds.strategy.aggregate_train(1, watched())
    assert answered == [0, 1, 2]


def test_the_order_of_replies_does_not_matter_to_the_metrics() -> None:
    answers = {name: good(float(index), index + 1) for index, name in enumerate("abcd")}
    forwards, backwards = Rounds(answers), Rounds(answers)
    assert forwards.train() == backwards.train(lambda replies: replies[::-1])
    np.testing.assert_allclose(forwards.w, backwards.w, rtol=1e-6)


def test_messages_say_what_to_do() -> None:
    rounds = Rounds({"a": good(), "b": good()})
    arrays = pack(WEIGHTS)
    given = ConfigRecord({"extra": 1})
    train = rounds.strategy.configure_train(3, arrays, given, rounds.grid)
    assert [dict(message.content.config_records["config"]) for message in train] == [
        {"extra": 1, "split": "train", "server-round": 3, "client-id": name, "architecture": ""}
        for name in "ab"
    ]
    evaluate = rounds.strategy.configure_evaluate(3, arrays, given, rounds.grid)
    assert {m.content.config_records["config"]["split"] for m in evaluate} == {"test"}
    on_train = ConfigRecord({"split": "train"})
    evaluate = rounds.strategy.configure_evaluate(3, arrays, on_train, rounds.grid)
    assert {m.content.config_records["config"]["split"] for m in evaluate} == {"train"}


def test_evaluation_adds_up_sums() -> None:
    answers: dict[str, Answer] = {
        "a": reply({}, sums(1, loss=5.0, correct=1)),
        "b": reply({}, {**sums(4, loss=2.5, correct=2), "num_batches": [2.0]}),
        "c": EMPTY,
        "d": ValueError("broken data"),
    }
    # The bound is that of training.
    rounds = Rounds(answers, max_batches=1)
    assert rounds.evaluate() == {"loss": 3.0, "accuracy": 0.6, "num_examples": 5, "num_batches": 3}
    tally = rounds.strategy.tally
    assert (tally.answered, tally.empty) == (3, 1)
    assert list(tally.failed) == ["d"]
    assert "ValueError: broken data (test_strategy.py, line " in tally.failed["d"]


def test_flowers_own_loop_runs_it() -> None:
    def halve(message: Message) -> RecordDict:
        now = unpack(message.content.array_records["arrays"], like=WEIGHTS)
        return reply({"w": now["w"] / 2, "b": now["b"] / 2}, sums(1))

    rounds = Rounds({"a": halve, "b": halve})
    result = rounds.strategy.start(grid=rounds.grid, initial_arrays=pack(WEIGHTS), num_rounds=3)
    final = unpack(result.arrays, like=WEIGHTS)
    np.testing.assert_array_equal(final["w"], WEIGHTS["w"] / 8)
    assert set(result.train_metrics_clientapp) == {1, 2, 3}
    assert result.train_metrics_clientapp[3]["num_examples"] == 2


def test_the_initial_arrays_stay_as_they_were() -> None:
    before = fingerprint(WEIGHTS)
    Rounds({"a": good(1.0)}).train()
    assert fingerprint(WEIGHTS) == before
