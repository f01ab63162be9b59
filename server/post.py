"""Messages on their way: each reply once, and what is lost between here and the nodes sent again."""

import re
import time
from collections.abc import Collection, Iterable, Iterator
from logging import WARNING
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore import log

from settings.errors import shorten
from weights.wire import AGAIN

if TYPE_CHECKING:
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid import HttpGrid

_LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Errors that tell of the SuperLink, killed while a reply was handed over, and not of the client."""
_RAISED = re.compile(r"^<class '(?:[\w.]+\.)?(\w+)'>:<'(.*)'>$", re.DOTALL)
"""How Flower's processes write an exception of an app."""


@runtime_checkable
class Forgets(Protocol):
    """A grid that keeps messages in this process till they are pulled, or until it is told that they will not be."""

    def forget(self, message_ids: Iterable[str]) -> None:
        """Do not deliver these messages."""


class Post:
    """Messages that are on their way, in the order of pushing, and the replies to them.

    Args:
        grid: Where the nodes are.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.open: dict[str, int] = {}
        """Ids of the messages without a reply so far -> the nodes that they went to."""
        self._sent: dict[str, Message] = {}
        self._first: dict[str, str] = {}
        self._questions: dict[str, set[str]] = {}
        self._lost: set[str] = set()

    def push(self, messages: Iterable[Message], ttl: float) -> list[Message]:
        """Send messages that live `ttl` seconds; returns error replies for those that the grid did not take."""
        sent = list(messages)
        for message in sent:
            message.metadata.ttl = ttl
        taken = {message_id for message_id in self._grid.push_messages(sent) if message_id}
        error, refused = Error(ErrorCode.UNKNOWN, "the SuperLink did not take the message"), []
        for message in sent:
            said = message.metadata
            if said.message_id in taken:
                self.open[said.message_id] = said.dst_node_id
                self._sent[said.message_id] = message
            else:
                refused.append(Message(error, reply_to=message))
        return refused

    def give_up(self) -> None:
        """Wait for nothing any more."""
        if isinstance(self._grid, Forgets):
            self._grid.forget(self.open)

    def question(self, ttl: float) -> None:
        """Ask the nodes of the open messages something that they answer after those; it lives `ttl` seconds.

        A SuperNode takes its messages one at a time, in the order of sending, and replies before it takes the next.
        So one that answers and has not replied to an earlier message never will. The SuperLink, killed while
        it handed that over, or a connection that broke, leaves no other trace: it counts as delivered.
        """
        if _runtime(self._grid) is None:
            return  # Flower's simulation works on a node's messages side by side
        owed: dict[int, set[str]] = {}
        for message_id, node in self.open.items():
            owed.setdefault(node, set()).add(message_id)
        empty = RecordDict({"config": ConfigRecord()})
        questions = [Message(empty, node, MessageType.QUERY, ttl=ttl) for node in owed]
        self._grid.push_messages(questions)
        self._questions = {
            question.metadata.message_id: owed[question.metadata.dst_node_id]
            for question in questions
        }

    def arrivals(self) -> Iterator[Message]:
        """One look at all open messages: each reply that has come, fetched when it is asked for.

        A reply is yielded once, and never one to another message: not a duplicate, and nothing that is
        still in flight from before the server was killed. What the SuperLink has lost is asked for again: a reply
        once, because it says so itself, a message whenever its node knows nothing of it.
        """
        came, failed = True, False
        while came and self.open:
            try:
                waiting = {**self.open, **self._questions} if self._questions else self.open
                replies = _arrived(self._grid, waiting.keys())
            except Exception as error:
                if failed:
                    raise
                log(WARNING, "replies could not be pulled: %s: %s", type(error).__name__, error)
                failed = True
                continue
            came = failed = False
            for reply in replies:
                came = True
                if self._closes(reply):
                    yield reply

        # Not before a look that has brought nothing: the reply may have come just before the answer.
        for message_id in [each for each in self.open if each in self._lost]:
            self._again(message_id, "it has lost a message")
        self._lost.clear()

    def _closes(self, reply: Message) -> bool:
        """Whether a reply is the one to an open message; one that was lost opens the message again."""
        answered = reply.metadata.reply_to_message_id
        if answered in self._questions:
            before = self._questions.pop(answered)
            self._lost |= set() if reply.has_error() else before
            return False
        if answered not in self.open:
            return False
        lost = reply.has_error() and reply.error.code in _LOST
        if lost and answered not in self._first and self._again(answered, error_reason(reply)):
            return False
        del self.open[answered], self._sent[answered]
        reply.metadata.__dict__["_reply_to_message_id"] = self._first.pop(answered, answered)
        return True

    def _again(self, message_id: str, reason: str) -> bool:
        """Send an open message again, for the seconds that it has left; whether the grid took it."""
        node, message = self.open[message_id], self._sent[message_id]
        left = message.metadata.created_at + message.metadata.ttl - time.time()
        if left <= 0:
            return False
        log(WARNING, "asking node %d again: %s", node, reason)
        first = self._first.get(message_id, message_id)
        content = message.content.copy()
        content[AGAIN] = ConfigRecord({"of": first})
        again = Message(content, node, message.metadata.message_type)
        if self.push([again], left):
            return False
        del self.open[message_id], self._sent[message_id]
        self._first.pop(message_id, None)
        self._first[again.metadata.message_id] = first
        return True


def _arrived(grid: Grid, message_ids: Collection[str]) -> Iterator[Message]:
    """Replies to these messages that have come: asked for in one request, each fetched when its turn comes.

    Flower's `HttpGrid.pull_messages` fetches all before it returns the first, and loses all if it cannot read one.
    So it is called for each by itself here, and told what the SuperLink has already said of that one.
    """
    client = _runtime(grid)
    if client is None:
        pulled = list(grid.pull_messages(message_ids))
        return (pulled.pop(0) for _ in range(len(pulled)))
    said = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    handed = zip(said.messages_list, said.message_object_trees, strict=True)
    return (reply for one in handed for reply in _fetched(cast("HttpGrid", grid), *one))


def _runtime(grid: Grid) -> "RuntimeHttpClient | None":
    """What a grid over HTTP calls its SuperLink by; None for a simulation's."""
    # Known by what it has: to import HttpGrid would bring in a SuperLink with its database.
    return getattr(grid, "_runtime_client", None)


def _fetched(grid: "HttpGrid", message: ProtoMessage, tree: ObjectTree) -> list[Message]:
    """The reply that the SuperLink has announced with `message` and `tree`; none if it cannot be read.

    It is gone from the SuperLink then, which says so at the next look.
    """
    client = grid._runtime_client
    said = PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])
    known = SimpleNamespace(
        PullMessages=lambda request: said,
        PullObject=client.PullObject,
        ConfirmMessageReceived=client.ConfirmMessageReceived,
    )
    alone = SimpleNamespace(_runtime_client=known, _run=grid.run, node=grid.node)
    try:
        return list(type(grid).pull_messages(alone, ()))  # type: ignore[arg-type]
    except Exception as error:
        log(WARNING, "a reply could not be read: %s: %s", type(error).__name__, error)
        return []


def error_reason(reply: Message) -> str:
    """The last line of an error reply's reason, which is all of a stack trace that says something."""
    reason = _RAISED.sub(r"\1: \2", (reply.error.reason or "").strip())
    lines = reason.splitlines()
    if not lines:
        return f"error {reply.error.code} without a reason"
    return shorten(re.sub(r"^([\w.]+\.)?InputError: ", "", lines[-1].strip()))
