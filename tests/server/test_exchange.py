"""Push and pull: early closing, deadlines, duplicates; and what a run makes of too few replies."""

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore import run
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from server.exchange import exchange
from server.post import error_reason
from simulation.grid import InProcessGrid
from weights.named import NamedArrays, fingerprint
from weights.wire import pack

Run = tuple[dict[str, Any], NamedArrays]
Federate = Callable[..., Run]


def grid_of(answer: Callable[[int], None], nodes: int) -> InProcessGrid:
    """A grid whose nodes answer queries after `answer(node number)`."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        answer(int(context.node_config["number"]))
        return Message(RecordDict({"config": ConfigRecord()}), reply_to=message)

    return InProcessGrid(app, {}, [{"number": number} for number in range(nodes)])


def questions(grid: InProcessGrid) -> list[Message]:
    return [Message(RecordDict(), node_id, "query") for node_id in grid.get_node_ids()]


def test_a_round_closes_when_enough_have_answered() -> None:
    called: list[int] = []
    grid = grid_of(called.append, 5)
    assert len(list(exchange(grid, questions(grid), 60.0, enough=3))) == 3
    assert called == [0, 1, 2]


def test_errors_are_passed_on_but_are_not_answers() -> None:
    def fail_first(number: int) -> None:
        if number == 0:
            raise RuntimeError("no\nmemory left")

    grid = grid_of(fail_first, 5)
    replies = list(exchange(grid, questions(grid), 60.0, enough=3))
    assert [reply.has_error() for reply in replies] == [True, False, False, False]
    assert error_reason(replies[0]) == "memory left"


def test_a_deadline_ends_the_waiting() -> None:
    grid = grid_of(lambda number: time.sleep(0.2), 5)
    assert 1 <= len(list(exchange(grid, questions(grid), 0.3))) < 5


def test_a_silent_grid_is_not_waited_for_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = grid_of(lambda number: None, 1)
    monkeypatch.setattr(grid, "pull_messages", lambda ids: [])
    started = time.monotonic()
    assert list(exchange(grid, questions(grid), 0.2)) == []
    assert time.monotonic() - started < 5


def test_a_reply_is_yielded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 3)
    pull = grid.pull_messages

    def twice(ids: Iterable[str]) -> list[Message]:
        return [*(replies := pull(ids)), *replies]

    monkeypatch.setattr(grid, "pull_messages", twice)
    assert len(list(exchange(grid, questions(grid), 60.0))) == 3


def test_replies_to_messages_from_before_a_kill_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if a grid handed them out: they answer messages that nobody waits for."""
    grid = grid_of(lambda number: None, 3)
    before = set(grid.push_messages(questions(grid)))
    pull = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: pull({*ids, *before}))
    sent = questions(grid)
    replies = list(exchange(grid, sent, 60.0))
    expected = {message.metadata.message_id for message in sent}
    assert {reply.metadata.reply_to_message_id for reply in replies} == expected


def test_what_the_grid_does_not_take_is_an_error_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 3)
    push = grid.push_messages

    def some(messages: Iterable[Message]) -> list[str | None]:
        first, *rest = push(messages)
        del grid._pending[first]
        return [None, *rest]

    monkeypatch.setattr(grid, "push_messages", some)
    sent = questions(grid)
    refused, *others = exchange(grid, sent, 60.0)
    assert error_reason(refused) == "the SuperLink did not take the message"
    assert refused.metadata.reply_to_message_id == sent[0].metadata.message_id
    assert [reply.has_error() for reply in others] == [False, False]


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
        if message.metadata.message_id in self._replied:
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
    sent = [Message(RecordDict(), node, "query") for node in range(2, 202)]
    replies = exchange(OverHttp(runtime), sent, 60.0)
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


def test_nodes_of_a_simulation_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """They work on their messages side by side in Flower's: an answer says nothing about another message."""
    monkeypatch.setattr("server.exchange._QUESTION", 0.05)
    called: list[int] = []
    grid = grid_of(called.append, 1)
    pull = grid.pull_messages
    begun = time.monotonic()
    monkeypatch.setattr(
        grid, "pull_messages", lambda ids: pull(ids) if time.monotonic() > begun + 0.5 else []
    )
    assert len(list(exchange(grid, questions(grid), 60.0))) == 1
    assert called == [0]


def test_a_look_that_fails_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 4)
    pull = grid.pull_messages
    looks = 0

    def failing(ids: Iterable[str]) -> list[Message]:
        nonlocal looks
        looks += 1
        if looks == 2:
            raise ValueError("no such record")
        return pull(ids)

    monkeypatch.setattr(grid, "pull_messages", failing)
    assert len(list(exchange(grid, questions(grid), 60.0))) == 4


def test_a_grid_that_keeps_failing_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grid_of(lambda number: None, 2)

    def broken(ids: Iterable[str]) -> list[Message]:
        raise ConnectionError("gone")

    monkeypatch.setattr(grid, "pull_messages", broken)
    with pytest.raises(ConnectionError):
        list(exchange(grid, questions(grid), 60.0))


@pytest.mark.parametrize("times", [1, 2])
def test_a_reply_that_the_superlink_lost_is_asked_for_again_once(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_of(lambda number: None, 3)
    pull = grid.pull_messages
    lost: list[str] = []

    def losing(ids: Iterable[str]) -> list[Message]:
        replies = pull(ids)
        if replies and replies[0].metadata.src_node_id == node and len(lost) < times:
            lost.append(replies[0].metadata.reply_to_message_id)
            error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "objects are unavailable")
            return [Message(metadata=replies[0].metadata, error=error)]  # type: ignore[call-overload]
        return replies

    node = grid.get_node_ids()[1]
    monkeypatch.setattr(grid, "pull_messages", losing)
    sent = questions(grid)
    replies = list(exchange(grid, sent, 60.0))
    assert len(lost) == times
    expected = {message.metadata.message_id for message in sent}
    assert {reply.metadata.reply_to_message_id for reply in replies} == expected
    assert len(replies) == 3
    assert sum(reply.has_error() for reply in replies) == (times == 2)


def test_over_selection_and_too_few_replies(writers: str, federate: Federate) -> None:
    settings = {"task": "emnist_lr", "data": writers, "rounds": 2, "cohort": "4", "eval_every": 0}
    over, _ = federate("over", **settings, over_select=1.3)
    for record in over["rounds"]:
        comm = record["comm"]
        assert (comm["asked"], comm["answered"], comm["late"]) == (6, 4, 2)
        assert comm["skipped"] == 0
    skipped, arrays = federate("skipped", **settings, min_replies=5)
    assert [record["comm"]["skipped"] for record in skipped["rounds"]] == [1, 1]
    assert fingerprint(arrays) == fingerprint(
        {
            "dense.weight": np.zeros((10, 784), np.float32),
            "dense.bias": np.zeros(10, np.float32),
        }
    )
