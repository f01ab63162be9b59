"""Messages out, replies in as they arrive: Flower's own `send_and_receive` polls every 3 seconds."""

import re
import time
from collections.abc import Collection, Iterable, Iterator
from logging import WARNING
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.serverapp import Grid
from flwr.supercore import log

from settings.errors import shorten

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_SHARE = 0.05
"""A pause between looks is at least this share of the waiting so far."""
_LOOKS = 10
"""It is at least this many times what the last look took: looking must not take the CPU that the replies need."""
_GRACE = 2.0
"""Seconds that a message outlives the waiting: what has not come is late, not an error that says `expired`."""
_LOST = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Errors that tell of the SuperLink, killed while a reply was handed over, and not of the client."""


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, enough: int | None = None
) -> Iterator[Message]:
    """Push messages and yield each reply when it arrives, error replies included.

    Args:
        grid: Where the nodes are.
        messages: One a client.
        timeout: Seconds after which what has not come is given up. The messages live hardly longer, so that no
            node starts on one that nobody waits for.
        enough: Replies without an error after which the rest is not waited for; None: all.
    """
    post = Post(grid)
    refused = post.push(messages, timeout + _GRACE)
    enough = len(post.open) if enough is None else enough
    return _replies(post, refused, timeout, enough)


def _replies(
    post: "Post", refused: list[Message], timeout: float, enough: int
) -> Iterator[Message]:
    started = time.monotonic()
    yield from refused
    while post.open and enough > 0 and (waited := time.monotonic() - started) < timeout:
        arrived = False
        for reply in post.arrivals():
            arrived = True
            enough -= not reply.has_error()
            yield reply
            if enough <= 0 or time.monotonic() - started >= timeout:
                return
        if not arrived:
            look = time.monotonic() - started - waited
            pause = max(_SHORTEST_PAUSE, waited * _SHARE, look * _LOOKS)
            time.sleep(min(pause, _LONGEST_PAUSE))


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

    def push(self, messages: Iterable[Message], ttl: float) -> list[Message]:
        """Send messages that live `ttl` seconds; returns error replies for those that the grid did not take."""
        sent = list(messages)
        for message in sent:
            message.metadata.ttl = ttl
        taken = {message_id for message_id in self._grid.push_messages(sent) if message_id}
        refused = [message for message in sent if message.metadata.message_id not in taken]
        for message in sent:
            if message.metadata.message_id in taken:
                self.open[message.metadata.message_id] = message.metadata.dst_node_id
                self._sent[message.metadata.message_id] = message
        error = Error(ErrorCode.UNKNOWN, "the SuperLink did not take the message")
        return [Message(error, reply_to=message) for message in refused]

    def arrivals(self) -> Iterator[Message]:
        """One look at all open messages: each reply that has come, fetched when it is asked for.

        A reply is yielded once, and never one to another message: not a duplicate, and nothing that is
        still in flight from before the server was killed. What the SuperLink has lost is asked for again, once.
        """
        came, failed = True, False
        while came and self.open:
            try:
                replies = _arrived(self._grid, self.open.keys())
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

    def _closes(self, reply: Message) -> bool:
        """Whether a reply is the one to an open message; one that was lost opens the message again."""
        answered = reply.metadata.reply_to_message_id
        if self.open.pop(answered, None) is None:
            return False
        message = self._sent.pop(answered)
        first = self._first.pop(answered, None)
        if first is not None:
            reply.metadata.__dict__["_reply_to_message_id"] = first
        elif reply.has_error() and reply.error.code in _LOST:
            log(
                WARNING,
                "asking node %d again: %s",
                message.metadata.dst_node_id,
                error_reason(reply),
            )
            asked = message.metadata
            again = Message(message.content, asked.dst_node_id, asked.message_type)
            if not self.push([again], asked.ttl):
                self._first[again.metadata.message_id] = answered
                return False
        return True


def _arrived(grid: Grid, message_ids: Collection[str]) -> Iterator[Message]:
    """Replies to these messages that have come: asked for in one request, each fetched when its turn comes.

    Flower's `HttpGrid.pull_messages` fetches all before it returns the first, and loses all if it cannot read one.
    So it is called for each by itself here, and told what the SuperLink has already said of that one.
    """
    # Known by what it has: to import HttpGrid would bring in a SuperLink with its database.
    client = getattr(grid, "_runtime_client", None)
    if client is None:
        pulled = list(grid.pull_messages(message_ids))
        return (pulled.pop(0) for _ in range(len(pulled)))
    said = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
    handed = zip(said.messages_list, said.message_object_trees, strict=True)
    return (reply for one in handed for reply in _fetched(cast("HttpGrid", grid), *one))


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
    lines = (reply.error.reason or "").strip().splitlines()
    if not lines:
        return f"error {reply.error.code} without a reason"
    return shorten(re.sub(r"^([\w.]+\.)?InputError: ", "", lines[-1].strip()))
