"""What a reply may claim: the least and the most of each."""

from typing import Any

import pytest
from flwr.app import MetricRecord, RecordDict

from server.replies import Claims
from settings.errors import counted
from tasks.metrics import ACCURACY, Metric
from weights.wire import WireError

OWN = Metric(lambda outputs, batch: [1.0, 2.0, 3.0], finalize=sum, num_sums=3)


def reply(examples: float = 16, batches: float = 2, **more: Any) -> RecordDict:
    said: dict[str, Any] = {"num_examples": [examples], "num_batches": [batches]}
    said |= {"loss": [1.0, 2.0], "accuracy": [1.0, 2.0], "own": [1.0, 2.0, 3.0]}
    return RecordDict({"metrics": MetricRecord(said | more)})


def claims(batch_size: int = 0, max_batches: int = 0) -> Claims:
    return Claims({"accuracy": ACCURACY, "own": OWN}, batch_size, max_batches)


def test_as_much_as_was_asked_for_is_no_exaggeration() -> None:
    claims(8, 2).sums(reply(16, 2))
    with pytest.raises(WireError, match="17 examples in 2 batches of 8 at most"):
        claims(8, 2).sums(reply(17, 2))
    with pytest.raises(WireError, match="3 batches: more than --max-batches"):
        claims(8, 2).sums(reply(16, 3))


def test_without_a_bound_counts_end_where_doubles_no_longer_tell_them_apart() -> None:
    assert claims().sums(reply(2**53 - 1))["num_examples"] == [2**53 - 1]
    with pytest.raises(WireError, match="how many examples"):
        claims().sums(reply(2**53))


@pytest.mark.parametrize("count", [[], [1.0, 1.0], 1.0])
def test_a_count_is_one_sum(count: Any) -> None:
    for name, said in (("num_examples", "how many examples"), ("num_batches", "how many batches")):
        with pytest.raises(WireError, match=said):
            claims().sums(reply(**{name: count}))


def test_a_metric_of_ones_own_has_as_many_sums_as_it_says() -> None:
    for own in ([], [1.0], [1.0] * 4):
        with pytest.raises(WireError, match=f"own has {counted(len(own), 'sum')}, not 3"):
            claims().sums(reply(own=own))


def test_sums_are_floats_whatever_was_sent() -> None:
    sums = claims().sums(reply(loss=[1, 2]))
    assert all(type(value) is float for values in sums.values() for value in values)


def test_how_many_examples_may_be_said_twice() -> None:
    assert claims().sums(reply(16)) == claims().sums(reply(16, **{"num-examples": 16}))
    with pytest.raises(WireError, match="16 examples, or 17"):
        claims().sums(reply(16, **{"num-examples": 17}))


def test_a_client_without_data_has_no_sums() -> None:
    assert claims().sums(RecordDict({"metrics": MetricRecord({"num-examples": 0})})) == {}
