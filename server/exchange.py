"""Messages out, replies in as they arrive: Flower's own `send_and_receive` polls every 3 seconds."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

from server.post import Post

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
_SHARE = 0.05
"""A pause between looks is at least this share of the waiting so far."""
_LOOKS = 10
"""It is at least this many times what the last look took: looking must not take the CPU that the replies need."""
_QUESTION = 30.0
"""Seconds of waiting after which nodes are asked whether their messages are lost; then at twice that, and so on."""
_GRACE = 2.0
"""Seconds that a message outlives the waiting: what has not come is late, not an error that says `expired`."""


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


def _replies(post: Post, refused: list[Message], timeout: float, enough: int) -> Iterator[Message]:
    try:
        yield from refused
        yield from _arriving(post, timeout, enough)
    finally:
        post.give_up()


def _arriving(post: Post, timeout: float, enough: int) -> Iterator[Message]:
    started, question = time.monotonic(), _QUESTION
    while post.open and enough > 0 and (waited := time.monotonic() - started) < timeout:
        arrived = False
        for reply in post.arrivals():
            arrived = True
            enough -= not reply.has_error()
            yield reply
            if enough <= 0 or time.monotonic() - started >= timeout:
                return
        if waited > question:
            post.question(waited)
            question = 2 * waited
        if not arrived:
            look = time.monotonic() - started - waited
            pause = max(_SHORTEST_PAUSE, waited * _SHARE, look * _LOOKS)
            time.sleep(min(pause, _LONGEST_PAUSE))
