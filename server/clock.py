"""What a round's time goes into."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message


class Clock:
    """Splits the time since it was made into laps.

    Attributes:
        seconds: By what the time went into.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = self._last = time.perf_counter()

    def lap(self, what: str) -> None:
        """The time since the last lap went into `what`."""
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self._last
        self._last = now

    def waiting(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass replies on: until each comes it is `waiting`, and `computing` until the next is asked for."""
        for reply in replies:
            self.lap("waiting")
            yield reply
            self.lap("computing")
        self.lap("waiting")

    @property
    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._started
