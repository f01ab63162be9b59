"""Discovery: which node serves which client."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client.app import app as client_app
from server.directory import Directory
from settings.errors import InputError
from simulation.grid import InProcessGrid


def test_discovery_divides_a_population_over_nodes(writers: str) -> None:
    nodes: list[UserConfig] = [{"partition-id": index, "num-partitions": 3} for index in range(3)]
    grid = InProcessGrid(client_app, {"task": "emnist_lr", "data": writers}, nodes)
    node_of = Directory.discover(grid).node_of
    assert list(node_of) == list("abcdefgh")
    first, second, third = grid.get_node_ids()
    assert [client_id for client_id, node in node_of.items() if node == second] == ["b", "e", "h"]
    assert Counter(node_of.values()) == {first: 3, second: 3, third: 2}


def test_data_that_cannot_be_opened_is_said() -> None:
    grid = InProcessGrid(client_app, {"task": "emnist_lr", "data": "/no/such.h5"})
    with pytest.raises(InputError, match=r"/no/such.h5: no such file"):
        Directory.discover(grid)


Announced = tuple[list[str], int, int]
"""What a node says: its clients, its partition-id and num-partitions."""


def announcing(*nodes: Announced | Exception) -> InProcessGrid:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        said = nodes[int(context.node_config["index"])]
        if isinstance(said, Exception):
            raise said
        ids, partition, partitions = said
        clients = ConfigRecord({"client-ids": ids})
        clients.update({"partition-id": partition, "num-partitions": partitions})
        return Message(RecordDict({"clients": clients}), reply_to=message)

    return InProcessGrid(app, {}, [{"index": index} for index in range(len(nodes))])


def shares(*clients: list[str]) -> InProcessGrid:
    return announcing(*((ids, index, len(clients)) for index, ids in enumerate(clients)))


def connect(
    grid: InProcessGrid, monkeypatch: pytest.MonkeyPatch, *looks: list[int]
) -> Iterator[list[int]]:
    """Let the nodes of a grid be connected look after look; the last one stays."""
    remaining = iter(looks)
    monkeypatch.setattr(grid, "get_node_ids", lambda: next(remaining, looks[-1]))
    return remaining


def test_clients_are_where_they_say() -> None:
    grid = shares(["x", "b"], [], ["a"])
    nodes = grid.get_node_ids()
    assert list(Directory.discover(grid).node_of.items()) == [
        ("a", nodes[2]),
        ("b", nodes[0]),
        ("x", nodes[0]),
    ]
    with pytest.raises(InputError, match="two nodes serve client 'b'"):
        Directory.discover(shares(["a", "b"], ["b"]))
    with pytest.raises(InputError, match="the data holds no client"):
        Directory.discover(shares([], []))
    with pytest.raises(InputError, match="waited 0 s for 1 node: 0 connected, 0 of them"):
        Directory.discover(announcing(), timeout=0.1)


def test_a_node_that_connects_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = shares(["a"], ["b"], ["c"])
    nodes = grid.get_node_ids()
    connect(grid, monkeypatch, nodes[:1], nodes[:2], nodes)
    assert list(Directory.discover(grid).node_of) == ["a", "b", "c"]


def test_nodes_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = shares(["a"], ["b"], ["c"])
    connect(grid, monkeypatch, grid.get_node_ids()[1:2])
    with pytest.raises(InputError, match=r"waited 1 s for 2 nodes with partition-id 0, 2 of 3"):
        Directory.discover(grid, timeout=1.0)


def test_nodes_without_a_partition_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = announcing((["a"], 0, 1), (["b", "c"], 0, 1), (["d"], 0, 1))
    nodes = grid.get_node_ids()
    connect(grid, monkeypatch, nodes[:1], nodes[:1], nodes)
    assert list(Directory.discover(grid, min_nodes=3).node_of) == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match="waited 1 s for 4 nodes: 3 connected, 3 of them"):
        Directory.discover(grid, min_nodes=4, timeout=1.0)


def test_a_dead_node_that_is_still_listed_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A SuperLink lists a killed SuperNode for a minute; started again, it is another node."""
    grid = shares(["a"], ["b"])
    connect(grid, monkeypatch, [*grid.get_node_ids(), 99])
    assert list(Directory.discover(grid).node_of) == ["a", "b"]


def test_a_node_that_comes_back_takes_its_clients_over(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = announcing((["a", "b"], 0, 2), (["c"], 1, 2), (["a", "b", "new"], 0, 2))
    first, second, again = grid.get_node_ids()
    connect(grid, monkeypatch, [first, second], [first, second], [first, second, again])
    directory = Directory.discover(grid)
    directory.refresh()
    assert directory.node_of == {"a": first, "b": first, "c": second}
    directory.refresh()
    assert directory.node_of == {"a": again, "b": again, "c": second}


@pytest.mark.parametrize("answer", [InputError("no such file: /data"), (["a"], 2, 2)])
def test_a_node_that_joins_and_fails_changes_nothing(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = announcing((["a"], 0, 1), answer)
    nodes = grid.get_node_ids()
    connect(grid, monkeypatch, nodes[:1], nodes)
    directory = Directory.discover(grid)
    directory.refresh()
    assert directory.node_of == {"a": nodes[0]}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((["b"], 0, 10**9), "it claims share 0 of 1000000000"),
        ((["b"], 2, 2), "it claims share 2 of 2"),
        ((["b"], "x", 2), "its answer is no announcement"),
    ],
)
def test_an_odd_announcement_is_named(answer: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"node 3 does not say whom it serves: {said}"):
        Directory.discover(announcing((["a"], 0, 2), answer))


def lose(grid: InProcessGrid, node: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages to a node be taken and never answered."""
    push = grid.push_messages

    def pushing(messages: Iterable[Message]) -> list[str]:
        sent = list(messages)
        ids = push(sent)
        for message in sent:
            if message.metadata.dst_node_id == node:
                del grid._pending[message.metadata.message_id]
        return ids

    monkeypatch.setattr(grid, "push_messages", pushing)


def test_a_node_that_never_answers_is_done_without_or_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = announcing((["a"], 0, 2), (["b"], 1, 2), (["b"], 1, 2))
    first, silent, third = grid.get_node_ids()
    lose(grid, silent, monkeypatch)
    assert Directory.discover(grid).node_of == {"a": first, "b": third}
    connect(grid, monkeypatch, [first, silent])
    started = time.monotonic()
    with pytest.raises(InputError, match=f"partition-id 1 of 2; no answer from node {silent}$"):
        Directory.discover(grid, timeout=0.3)
    assert time.monotonic() - started < 5


def test_why_a_node_did_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = shares(["a"], ["b"])
    connect(grid, monkeypatch, [grid.get_node_ids()[0], 99])
    with pytest.raises(InputError, match="partition-id 1 of 2; node 99: there is no node 99"):
        Directory.discover(grid, timeout=0.3)


def test_a_node_that_was_not_reached_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = shares(["a"], ["b"])
    nodes, pull = grid.get_node_ids(), grid.pull_messages
    failed: list[int] = []
    answered: set[int] = set()

    def failing(ids: Iterable[str]) -> list[Message]:
        replies = [*pull(ids)]
        for place, reply in enumerate(replies):
            if reply.metadata.src_node_id != nodes[1] or failed:
                answered.add(reply.metadata.src_node_id)
            else:
                failed.append(nodes[1])
                error = Error(ErrorCode.NODE_UNAVAILABLE, "unreachable")
                replies[place] = Message(metadata=reply.metadata, error=error)  # type: ignore[call-overload]
        return replies

    monkeypatch.setattr(grid, "pull_messages", failing)
    assert Directory.discover(grid).node_of == {"a": nodes[0], "b": nodes[1]}
    assert failed == [nodes[1]]
    failed.clear()
    answered.clear()
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 * (len(answered) == 2))
    with pytest.raises(InputError, match=r"3 nodes: 2 connected, 2 of them answered$"):
        Directory.discover(grid, min_nodes=3)
    assert failed == [nodes[1]]


def test_a_node_that_joins_and_never_answers_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.directory._ANNOUNCING", 0.2)
    grid = announcing((["a"], 0, 1), (["a"], 0, 1))
    nodes = grid.get_node_ids()
    connect(grid, monkeypatch, nodes[:1], nodes)
    lose(grid, nodes[1], monkeypatch)
    directory = Directory.discover(grid)
    started = time.monotonic()
    directory.refresh()
    assert 0.2 <= time.monotonic() - started < 5
    directory.refresh()  # it has been waited for
    assert time.monotonic() - started < 5
    assert directory.node_of == {"a": nodes[0]}
