"""Who takes part: clients are discovered by asking the nodes, and drawn from (seed, round)."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from server.exchange import error_reason, exchange
from settings.errors import InputError, unknown
from settings.schema import Settings

_PAUSE = 0.5
"""Seconds between looks for nodes that have connected meanwhile."""


@dataclass(frozen=True)
class Directory:
    """Which node holds which client's data; `node_of` is in sorted order of client ids."""

    node_of: dict[str, int]

    @classmethod
    def discover(cls, grid: Grid, timeout: float = 60.0) -> "Directory":
        """Ask the nodes which clients they serve, until every share of the population is there.

        A node says which share it serves (`partition-id` of `num-partitions`), so that it is known who is
        still missing: going on without them would change every cohort.

        Raises:
            InputError: Nobody or not everybody within `timeout` seconds, a node that cannot open its data,
                or two nodes with the same client.
        """
        deadline = time.monotonic() + timeout
        node_of: dict[str, int] = {}
        asked: set[int] = set()
        shares: set[int] = set()
        expected = 1
        while len(shares) < expected:
            new = sorted(set(grid.get_node_ids()) - asked)
            asked.update(new)
            for reply in _ask(grid, new, deadline):
                said = reply.content.config_records["clients"]
                expected = max(expected, int(said["num-partitions"]))  # type: ignore[arg-type]
                shares.add(int(said["partition-id"]))  # type: ignore[arg-type]
                node = reply.metadata.src_node_id
                for client_id in said["client-ids"]:  # type: ignore[union-attr]
                    if node_of.setdefault(str(client_id), node) != node:
                        raise InputError(
                            f"two nodes serve client {client_id!r}; one client, one node"
                        )
            if len(shares) < expected:
                if time.monotonic() > deadline:
                    missing = sorted(set(range(expected)) - shares)
                    raise InputError(
                        f"waited {timeout:.0f} s for nodes with partition-id {missing} of {expected}: "
                        f"{len(asked)} are connected, {len(shares)} of them answered"
                    )
                time.sleep(_PAUSE)
        if not node_of:
            raise InputError("the data holds no client")
        return cls(dict(sorted(node_of.items())))


def _ask(grid: Grid, nodes: list[int], deadline: float) -> Iterator[Message]:
    """The nodes' announcements; InputError for one that cannot open its data."""
    questions = [
        Message(RecordDict({"config": ConfigRecord()}), node, MessageType.QUERY) for node in nodes
    ]
    for reply in exchange(grid, questions, deadline - time.monotonic()):
        if reply.has_error():
            raise InputError(error_reason(reply))
        yield reply


class Cohort:
    """The clients of each round: fixed ids, everybody, or sampled without replacement."""

    def __init__(self, directory: Directory, settings: Settings) -> None:
        self._ids = list(directory.node_of)
        self._seed = settings.seed
        self._named = settings.named_clients()
        for name in self._named:
            if name not in directory.node_of:
                raise unknown("client id", name, self._ids)
            if self._named.count(name) > 1:
                raise InputError(f"--client-ids names {name} twice")
        self._size = self._read_size(settings.cohort, "--cohort")
        asked = math.ceil(self._size * settings.over_select)
        self._asked = min(asked, len(self._ids))
        self._eval_size = self._read_size(settings.eval_cohort or settings.cohort, "--eval-cohort")
        self._evaluates_named = bool(self._named) and not settings.eval_cohort

    def _read_size(self, text: str, flag: str) -> int:
        if text == "all":
            return len(self._ids)
        try:
            size = int(text)
        except ValueError:
            raise InputError(f"{flag} must be a number of clients or all, not {text!r}") from None
        if size < 1:
            raise InputError(
                f"{flag} {size} is an empty cohort: at least one client must take part"
            )
        # More than there are is everybody, so that one command serves small and large populations.
        return min(size, len(self._ids))

    def train(self, server_round: int) -> list[str]:
        """Ids of the clients that are asked in a round (1, 2, ...): sorted, or as the user named them."""
        return self._named or self._draw(self._asked, server_round)

    @property
    def enough(self) -> int:
        """Replies that close a round: with over-selection, fewer than are asked."""
        return len(self._named) or self._size

    def evaluate(self) -> list[str]:
        """Ids of the clients that evaluate: the same in every round, so that the curve compares."""
        return self._named if self._evaluates_named else self._draw(self._eval_size, 0)

    def _draw(self, size: int, server_round: int) -> list[str]:
        rng = np.random.default_rng([self._seed, server_round])
        chosen = rng.choice(len(self._ids), size=size, replace=False, shuffle=False)
        return [self._ids[index] for index in np.sort(chosen)]
