"""Bytes on the wire, against what Flower really makes of a message."""

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from server.meter import Traffic, sizes
from simulation.grid import InProcessGrid
from weights.wire import pack


@pytest.fixture(autouse=True)
def run() -> None:
    """Messages can be made only inside a run."""
    InProcessGrid(ClientApp(), {})


def message(shapes: list[tuple[int, ...]]) -> Message:
    rng = np.random.default_rng(0)
    arrays = {f"array{i}": rng.normal(size=s).astype(np.float32) for i, s in enumerate(shapes)}
    content = RecordDict(
        {
            "arrays": pack(arrays),
            "config": ConfigRecord({"client-id": "Chloé", "seed": [1, 2, 2**64 - 1], "norm": 0.1}),
            "odd": ConfigRecord({"a": True, "b": b"\xff" * 200, "c": ["é", "b"], "d": [], "e": -3}),
            "metrics": MetricRecord({"loss": [1.5, 2.0], "num-examples": 3, "share": 1.0}),
        }
    )
    return Message(content, 7, "train")


@pytest.mark.parametrize(
    "shapes",
    [[], [()], [(3,), (4, 5)], [(1000, 10), (0,)], [(2000, 1000), (1500, 1000), (17,)]],
    ids=str,
)
def test_a_message_is_as_long_as_what_flower_sends(shapes: list[tuple[int, ...]]) -> None:
    made = message(shapes)
    made.metadata.__dict__["_message_id"] = "f" * 64
    for each in (made, Message(made.content, reply_to=made)):
        sent = get_all_nested_objects(each)
        assert sizes(each, {})[1] == sum(len(item.deflate()) for item in sent.values())


def test_no_record_is_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are looked up: by all that says them, of however many records."""
    monkeypatch.setattr("server.meter._MOST", 5)
    values: list[Any] = [
        "a",
        "bc",
        "é",
        b"a",
        1,
        300,
        -1,
        -64,
        -65,
        63,
        64,
        2**63,
        True,
        0.5,
        1e300,
    ]
    lists: list[Any] = [["a", "bc"], ["a"], [1], [300, 1], [True], [0.5], [0.5, 2.5], [b"abc"]]
    for value in (*values, *lists, *values):
        content = RecordDict({"config": ConfigRecord({"value": value})})
        made = Message(content, 7, "train")
        made.metadata.__dict__["_message_id"] = "f" * 64
        sent = get_all_nested_objects(made).values()
        assert sizes(made, {})[1] == sum(len(item.deflate()) for item in sent), value


@pytest.mark.parametrize("size", [10, 10**6])
def test_what_was_measured_is_not_kept(size: int) -> None:
    record = ConfigRecord({"value": bytes(size)})
    seen = weakref.ref(record)
    sizes(Message(RecordDict({"config": record}), 7, "train"), {})
    del record
    gc.collect()
    assert seen() is None


def test_an_error_reply_has_no_payload() -> None:
    made = message([(3,)])
    made.metadata.__dict__["_message_id"] = "1"
    reply = Message(Error(2, "because"), reply_to=made)
    traffic = Traffic()
    assert list(traffic.count_received([reply])) == [reply]
    assert traffic.aggregated == 0
    assert traffic.aggregated_message == len(reply.deflate())


def test_traffic_adds_up() -> None:
    traffic = Traffic()
    traffic.count_sent([message([(10,)]), message([(10,)])])
    assert traffic.broadcasted == 2 * (128 + 40)  # npy's header is 128 bytes
    assert traffic.broadcasted_message > traffic.broadcasted
    assert len([*traffic.count_received([message([(10,)])])]) == 1
    assert traffic.aggregated == 128 + 40
    assert 2 * traffic.aggregated_message == traffic.broadcasted_message
