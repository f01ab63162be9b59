"""Weighted federated averaging: the arithmetic, and what is counted."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from server.exchange import exchange
from tests.server.stubs import EMPTY, WEIGHTS, Answer, Rounds, good, reply, sums, update
from weights.named import fingerprint
from weights.wire import pack, unpack


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


def test_the_largest_share_is_measured() -> None:
    rounds = Rounds({"a": good(1.0, examples=1), "b": good(1.0, examples=3)})
    rounds.train()
    assert rounds.strategy.tally.largest_share == 0.75


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


def test_a_round_without_any_data_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Rounds({"a": good(1.0), "b": EMPTY}).train()
    assert not caplog.text
    rounds = Rounds({"a": EMPTY, "b": EMPTY})
    rounds.train()
    assert rounds.w == [1.0, 2.0]
    assert "round 1: no client had a batch of data, the model stays as it was" in caplog.text


def test_a_round_with_too_few_replies_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    rounds = Rounds({"a": good(1.0), "b": EMPTY, "c": good(1.0)}, min_replies=3)
    rounds.train(lambda replies: replies[:1])
    rounds.train(lambda replies: replies[:2])
    assert "round 1 is skipped: 1 reply, 3 needed at least" in caplog.text
    assert "round 1 is skipped: 2 replies, 3 needed at least" in caplog.text
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
    assert "ValueError: broken data (stubs.py, line " in tally.failed["d"]


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
