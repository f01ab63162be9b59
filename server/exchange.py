"""Messages out, replies in as they arrive: Flower's own `send_and_receive` polls every 3 seconds."""

import re
import time
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0


def exchange(
    grid: Grid, messages: Sequence[Message], timeout: float, enough: int | None = None
) -> Iterator[Message]:
    """Push messages and yield each reply when it arrives, error replies included.

    Args:
        grid: Where the nodes are.
        messages: One a client.
        timeout: Seconds after which what has not come is given up: the messages' time to live, so that no
            node starts on one that nobody waits for.
        enough: Replies without an error after which the rest is not waited for; None: all.
    """
    for message in messages:
        message.metadata.ttl = timeout
    waiting = set(grid.push_messages(messages))
    return _replies(grid, waiting, timeout, len(waiting) if enough is None else enough)


def _replies(grid: Grid, waiting: set[str], timeout: float, enough: int) -> Iterator[Message]:
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while waiting and enough > 0 and time.monotonic() < deadline:
        arrived = False
        for reply in grid.pull_messages(waiting):
            # Never the same reply twice: a duplicate would count twice.
            if reply.metadata.reply_to_message_id in waiting:
                arrived = True
                waiting.remove(reply.metadata.reply_to_message_id)
                enough -= not reply.has_error()
                yield reply
        pause = _FIRST_PAUSE if arrived else min(pause * 1.5, _LONGEST_PAUSE)
        if not arrived:
            time.sleep(pause)


def error_reason(reply: Message) -> str:
    """The last line of an error reply's reason, which is all of a stack trace that says something."""
    lines = (reply.error.reason or "").strip().splitlines()
    if not lines:
        return f"error {reply.error.code} without a reason"
    return re.sub(r"^([\w.]+\.)?InputError: ", "", lines[-1].strip())
