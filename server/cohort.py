"""Who takes part: clients are discovered by asking the nodes, and drawn from (seed, round)."""

import math
import time
from collections.abc import Iterator, Mapping
from logging import INFO, WARNING
from types import MappingProxyType

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore import log

from server.exchange import error_reason, exchange
from settings.errors import InputError, unknown
from settings.schema import Settings

_PAUSE = 0.5
"""Seconds between looks for nodes that have connected meanwhile."""
_ANNOUNCING = 60.0
"""Seconds that a node which connects during the run is given to say whom it serves."""


class Directory:
    """Which node serves which client, as the nodes announce it.

    Attributes:
        node_of: Client id -> node id, in sorted order of client ids.
    """

    def __init__(self, grid: Grid, node_of: Mapping[str, int] = MappingProxyType({})) -> None:
        self.node_of = dict(node_of)
        self._grid = grid
        self._asked: set[int] = set()
        self._shares: dict[int, tuple[int, int]] = {}

    @classmethod
    def discover(cls, grid: Grid, min_nodes: int = 1, timeout: float = 120.0) -> "Directory":
        """Ask the nodes which clients they serve, until all of them are there.

        All are there when at least `min_nodes` have answered, and where nodes serve shares of a population
        (`partition-id` of `num-partitions`) every share: going on without one would change every cohort.

        Raises:
            InputError: Not everybody within `timeout` seconds, a node that cannot open its data, or two nodes
                with the same client.
        """
        directory = cls(grid)
        deadline = time.monotonic() + timeout
        said = ""
        while True:
            for node, clients in directory._announcements(deadline - time.monotonic()):
                if isinstance(clients, str):
                    raise InputError(clients)
                for client_id in clients:
                    if directory.node_of.setdefault(client_id, node) != node:
                        raise InputError(
                            f"two nodes serve client {client_id!r}; one client, one node"
                        )
                if directory._partitioned and not directory._missing(min_nodes):
                    break  # a node that has died is listed for a minute, and does not answer
            missing = directory._missing(min_nodes)
            if not missing:
                break
            if time.monotonic() > deadline:
                raise InputError(f"waited {timeout:.0f} s for {missing}")
            if missing != said:
                log(INFO, "waiting for %s", missing)
                said = missing
            time.sleep(_PAUSE)
        if not directory.node_of:
            raise InputError("the data holds no client")
        directory.node_of = dict(sorted(directory.node_of.items()))
        return directory

    def refresh(self) -> None:
        """Ask nodes that have connected since: a SuperNode that was started again is a new node.

        It takes over the clients that it announces. Clients that nobody announced at the start stay out of
        the run, because they would change its cohorts.
        """
        for node, clients in self._announcements(_ANNOUNCING):
            if isinstance(clients, str):
                log(WARNING, "node %d does not take part: %s", node, clients)
                continue
            known = [client_id for client_id in clients if client_id in self.node_of]
            self.node_of.update(dict.fromkeys(known, node))
            log(INFO, "node %d has joined and serves %d of the run's clients", node, len(known))

    def _announcements(self, timeout: float) -> Iterator[tuple[int, list[str] | str]]:
        """The nodes that have connected since the last call, each with its clients or why it has none."""
        connected = set(self._grid.get_node_ids())
        new = [
            Message(RecordDict({"config": ConfigRecord()}), node, MessageType.QUERY)
            for node in sorted(connected - self._asked)
        ]
        self._asked |= connected
        for reply in exchange(self._grid, new, timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                if reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION:
                    yield node, error_reason(reply)
                else:
                    self._asked.discard(
                        reply.metadata.src_node_id
                    )  # asked again if it is still there
                continue
            said = reply.content.config_records["clients"]
            share = int(said["partition-id"]), int(said["num-partitions"])  # type: ignore[arg-type]
            self._shares[node] = share
            yield node, [str(client_id) for client_id in said["client-ids"]]  # type: ignore[union-attr]

    @property
    def _partitioned(self) -> bool:
        return any(number > 1 for _, number in self._shares.values())

    def _missing(self, min_nodes: int) -> str:
        """Who is still waited for, in words; empty if nobody is."""
        answered = len(self._shares)
        said = []
        if answered < min_nodes:
            said.append(
                f"{min_nodes} nodes: {len(self._asked)} are connected, {answered} of them answered"
            )
        served = set(self._shares.values())
        for number in sorted({number for _, number in served if number > 1}):
            absent = [index for index in range(number) if (index, number) not in served]
            if absent:
                said.append(f"nodes with partition-id {absent} of {number}")
        return " and ".join(said)


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
