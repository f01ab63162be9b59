"""What goes over HTTP, by Flower's own grid over a stub: replies fetched in turn, lost messages sent again."""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore import run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from server.exchange import exchange
from server.post import Post
from weights.wire import pack


class Runtime:
    """What Flower's grid calls: a SuperLink where each message has its reply at once, of some bytes.

    Args:
        garbled: The node whose reply cannot be read.
        loses: Messages that a node loses before it replies to one; questions are not lost.
        slow: A node that works on its first message, and on nothing else, till it has been asked so many questions.
    """

    def __init__(
        self,
        garbled: int = -1,
        loses: Mapping[int, int] = MappingProxyType({}),
        slow: tuple[int, int] = (-1, 0),
    ) -> None:
        self.requests: list[int] = []
        self.fetched: list[str] = []
        self.pushed: list[Message] = []
        self.expired: set[str] = set()
        """Kinds of messages whose time is over before they are answered."""
        self._garbled = garbled
        self._loses = dict(loses)
        self._slow, self._questions = slow
        self._lost: set[str] = set()
        self._sent: dict[str, Message] = {}
        self._replied: set[str] = set()
        self._objects: dict[str, bytes] = {}

    def PushMessages(self, request: Any) -> Any:
        ids = [proto.metadata.message_id for proto in request.messages_list]
        for message_id, proto in zip(ids, request.messages_list, strict=True):
            self._sent[message_id] = message = message_from_proto(proto)
            self.pushed.append(message)
            node, asks = message.metadata.dst_node_id, message.metadata.message_type == "query"
            if not asks and self._loses.get(node, 0):
                self._loses[node] -= 1
                self._lost.add(message_id)
            self._questions -= asks and node == self._slow
        return SimpleNamespace(message_ids=ids, objects_to_push=[], session_id="")

    def PushObject(self, request: Any) -> Any:
        raise AssertionError("no object was asked for")

    def PullMessages(self, request: Any) -> Any:
        self.requests.append(len(request.message_ids))
        answered = [message_id for message_id in request.message_ids if self._answers(message_id)]
        replies = [self._reply(self._sent[message_id]) for message_id in answered]
        for reply in replies:
            self._objects |= {i: o.deflate() for i, o in get_all_nested_objects(reply).items()}
            if reply.metadata.src_node_id == self._garbled and not reply.has_error():
                self._objects[reply.metadata.message_id] = b"not an object"
        return PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(each)) for each in replies],
            message_object_trees=list(map(get_object_tree, replies)),
        )

    def _answers(self, message_id: str) -> bool:
        busy = self._sent[message_id].metadata.dst_node_id == self._slow and self._questions > 0
        return message_id not in self._lost and not busy

    def _reply(self, message: Message) -> Message:
        gone = message.metadata.message_type in self.expired
        if gone or message.metadata.message_id in self._replied:
            reply = Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "gone"), reply_to=message)
        else:
            arrays = pack({"w": np.zeros(1000, np.uint8)})
            reply = Message(RecordDict({"arrays": arrays}), reply_to=message)
        self._replied.add(message.metadata.message_id)
        reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        return reply

    def PullObject(self, request: Any) -> Any:
        content = self._objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.fetched.append(request.message_object_id)


class OverHttp(HttpGrid):
    """Flower's own grid, over the stub."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(token="none")
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.set_run(run.Run.create_empty(1))
        self._runtime = runtime

    @property
    def _runtime_client(self) -> Any:
        return self._runtime


def test_one_request_asks_for_all_and_each_reply_is_fetched_when_it_is_its_turn() -> None:
    """So that a look costs the SuperLink little, and the server holds one update at a time."""
    runtime = Runtime()
    grid = OverHttp(runtime)
    sent = [Message(RecordDict(), node, "query") for node in range(2, 202)]
    replies = exchange(grid, sent, 60.0)
    for number, reply in enumerate(replies, 1):
        assert reply.metadata.reply_to_message_id == sent[number - 1].metadata.message_id
        assert len(runtime.fetched) == number
    assert len(runtime.fetched) == 200
    assert runtime.requests == [200]


def test_a_reply_that_cannot_be_read_costs_itself_alone() -> None:
    """It is asked for again, once; the others come with the first look."""
    runtime = Runtime(garbled=3)
    sent = [Message(RecordDict(), node, "query") for node in range(2, 6)]
    replies = list(exchange(OverHttp(runtime), sent, 60.0))
    assert [reply.has_error() for reply in replies] == [False, False, False, True]
    expected = [sent[index].metadata.message_id for index in (0, 2, 3, 1)]
    assert [reply.metadata.reply_to_message_id for reply in replies] == expected
    assert len(set(runtime.fetched)) >= 4
    assert runtime.requests[0] == 4
    assert set(runtime.requests[1:]) == {1}


def work(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict({"config": ConfigRecord()}), node, "train") for node in nodes]


@pytest.mark.parametrize("times", [1, 3])
def test_a_message_that_was_lost_on_its_way_is_sent_again(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node answers a later question, and has not replied."""
    monkeypatch.setattr("server.exchange._QUESTION", 0.1)
    runtime = Runtime(loses={3: times})
    sent = work(range(2, 6))
    replies = list(exchange(OverHttp(runtime), sent, 60.0))
    expected = [sent[index].metadata.message_id for index in (0, 2, 3, 1)]
    assert [reply.metadata.reply_to_message_id for reply in replies] == expected
    assert not any(reply.has_error() for reply in replies)
    again = [message for message in runtime.pushed if message.metadata.message_type == "train"][4:]
    assert [message.metadata.dst_node_id for message in again] == [3] * times
    assert all(50 < message.metadata.ttl < sent[1].metadata.ttl for message in again)


def test_a_message_that_is_sent_again_names_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.exchange._QUESTION", 0.1)
    runtime = Runtime(loses={3: 2})
    again: list[object] = []
    grid = OverHttp(runtime)
    push = grid.push_messages

    def watched(messages: Iterable[Message]) -> Iterable[str]:
        again.extend(m.content["again"]["of"] for m in messages if "again" in m.content)
        return push(messages)

    monkeypatch.setattr(grid, "push_messages", watched)
    [message] = work([3])
    assert len(list(exchange(grid, [message], 60.0))) == 1
    assert again == [message.metadata.message_id] * 2
    assert "again" not in message.content


def test_a_message_whose_time_is_over_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    runtime.expired.add("train")
    post = Post(OverHttp(runtime))
    [message] = work([3])
    post.push([message], 10.0)
    over = message.metadata.created_at + 10.0
    monkeypatch.setattr(time, "time", lambda: over)
    [reply] = post.arrivals()
    assert reply.has_error()
    assert len(runtime.pushed) == 1


def test_a_node_that_is_slow_is_not_sent_its_message_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply and the answer, the second before the first, come in one look."""
    monkeypatch.setattr("server.exchange._QUESTION", 0.1)
    runtime = Runtime(slow=(3, 3))
    grid = OverHttp(runtime)
    monkeypatch.setattr(grid._runtime_client, "PullMessages", backwards(runtime.PullMessages))
    assert len(list(exchange(grid, work([3]), 60.0))) == 1
    assert [message.metadata.message_type for message in runtime.pushed] == [
        "train",
        *["query"] * 3,
    ]


def backwards(pull: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def pulled(request: Any) -> Any:
        said = pull(request)
        return PullAppMessagesResponse(
            messages_list=said.messages_list[::-1],
            message_object_trees=said.message_object_trees[::-1],
        )

    return pulled


def test_a_question_does_not_live_longer_than_until_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that works for long finds one question waiting, and not all of them."""
    monkeypatch.setattr("server.exchange._QUESTION", 0.1)
    runtime = Runtime(slow=(3, 4))
    assert len(list(exchange(OverHttp(runtime), work([3]), 60.0))) == 1
    asked = [message.metadata for message in runtime.pushed[1:]]
    for one, following in pairwise(asked):
        assert one.created_at + one.ttl < following.created_at + 0.1


def test_a_question_that_was_not_answered_says_nothing_of_a_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A SuperLink answers itself with an error when a question's time is over."""
    monkeypatch.setattr("server.exchange._QUESTION", 0.1)
    runtime = Runtime(loses={3: 1})
    runtime.expired.add("query")
    assert list(exchange(OverHttp(runtime), work([3]), 0.6)) == []
    kinds = [message.metadata.message_type for message in runtime.pushed]
    assert kinds[:2] == ["train", "query"]
    assert kinds.count("train") == 1
