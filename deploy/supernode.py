"""A `flower-supernode` that does not sleep through a run.

    python deploy/supernode.py --insecure --superlink 127.0.0.1:8000 --isolation process --node-config ...

takes the flags of `flower-supernode` and does the same. Flower's sleeps 3 s whenever there is no message for it, which
is always so when it has just answered the last one of a round, and 0.5 s at a time while its app works. Here a pause
follows from how long it has waited already, as in `server/exchange.py`: short ones while a run goes on, Flower's
own when nothing happens.
"""

import time

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

_SHORTEST_PAUSE = 0.2
_SHARE = 0.1
"""A pause is at least this share of the waiting so far."""
_LOOKS = 10
"""It is at least this many times what the last look took: all SuperNodes ask the same SuperLink."""


class Pauses:
    """Stands in for the module `time` in Flower's loop, of which that uses `sleep` alone."""

    def __init__(self) -> None:
        self._asked = 0.0
        self._since = self._woke = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds` at most; other `seconds` than the last time mean another thing to wait for."""
        now = time.monotonic()
        if seconds != self._asked:
            self._asked, self._since = seconds, now
        looked = now - max(self._woke, self._since)
        time.sleep(
            min(seconds, max(_SHORTEST_PAUSE, (now - self._since) * _SHARE, looked * _LOOKS))
        )
        self._woke = time.monotonic()


def main() -> None:
    """Run Flower's SuperNode with these pauses; it offers no setting for them."""
    setattr(start_client_internal, "time", Pauses())  # noqa: B010
    flower_supernode()


if __name__ == "__main__":
    main()
