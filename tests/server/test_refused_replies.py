"""What becomes of replies that are not as they should be."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from settings.errors import InputError
from tasks.metrics import Metric
from tests.server.stubs import (
    Answer,
    Rounds,
    good,
    reply,
    sums,
    update,
)
from weights.wire import pack


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
    "loss of one sum": (reply(update(1, 1), {**sums(1), "loss": [1.0]}), "loss has 1 sum, not 2"),
    "other number of sums": (reply(update(1, 1), {**sums(1), "accuracy": [1.0]}), "accuracy"),
    "a thousand sums": (
        reply(update(1, 1), {**sums(1), "accuracy": [1.0] * 1000}),
        "has 1,000 sums",
    ),
    "a thousand metrics": (
        reply(update(1, 1), sums(1) | {f"m{n:03}": [1.0] for n in range(1000)}),
        "m000, m001, m002 and 997 more",
    ),
    "a giant name": (reply(update(1, 1), {**sums(1), "x" * 10**6: [1.0]}), r"x{200} \.\.\.$"),
    "too many examples": (
        reply(update(1, 1), sums(10**12)),
        "claims 1,000,000,000,000 examples in 1 batch of 8 at most",
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
    one = Rounds({"a": RuntimeError("no memory")})
    one.train()
    with pytest.raises(InputError, match=r"^round 1: the only client failed; a: .*no memory"):
        one.strategy.tally.check("round 1")
