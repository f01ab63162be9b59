"""Which clients there are, and where: the nodes are asked."""

import time
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from logging import INFO, WARNING
from types import MappingProxyType

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore import log

from server.post import Post, error_reason
from settings.errors import InputError, counted, few
from weights.wire import WireError, records

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5
"""Seconds between looks for nodes that have connected meanwhile."""
_ANNOUNCING = 60.0
"""Seconds that a node which connects during the run is given to say whom it serves."""
_MOST_PARTITIONS = 100_000
_FATAL = (ErrorCode.LOAD_CLIENT_APP_EXCEPTION, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
"""Errors of the app itself: waiting does not mend data that cannot be opened."""


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
        self._failed: dict[int, str] = {}
        self._post = Post(grid)
        self._questions: dict[str, int] = {}

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
        said, pause = "", _FIRST_PAUSE
        while True:
            for node, clients in directory._announcements():
                pause = _FIRST_PAUSE
                if isinstance(clients, str):
                    raise InputError(clients)
                for client_id in clients:
                    if directory.node_of.setdefault(client_id, node) != node:
                        raise InputError(
                            f"two nodes serve client {client_id!r}; one client, one node"
                        )
            missing, late = directory._missing(min_nodes), time.monotonic() > deadline
            # A node that has died is listed for a minute, and does not answer.
            if not missing and (late or directory._partitioned or not directory._silent):
                break
            if late:
                raise InputError(f"waited {timeout:.0f} s for {missing}{directory._not_heard()}")
            if missing != said:
                log(INFO, "waiting for %s", missing)
                said = missing
            time.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
        if not directory.node_of:
            raise InputError("the data holds no client")
        directory.node_of = dict(sorted(directory.node_of.items()))
        return directory

    def refresh(self) -> None:
        """Ask nodes that have connected since: a SuperNode that was started again is a new node.

        It takes over the clients that it announces. Clients that nobody announced at the start stay out of
        the run, because they would change its cohorts.
        """
        deadline, known_to_be_silent = time.monotonic() + _ANNOUNCING, self._silent
        while True:
            for node, clients in self._announcements():
                if isinstance(clients, str):
                    log(WARNING, "node %d does not take part: %s", node, clients)
                    continue
                known = [client_id for client_id in clients if client_id in self.node_of]
                self.node_of.update(dict.fromkeys(known, node))
                log(INFO, "node %d has joined and serves %d of the run's clients", node, len(known))
            if not self._silent - known_to_be_silent or time.monotonic() > deadline:
                return
            time.sleep(_FIRST_PAUSE)

    def _announcements(self) -> Iterator[tuple[int, list[str] | str]]:
        """What nodes have said since the last call, each with its clients or why it has none.

        Asks those that have connected since, and waits for nobody.
        """
        connected = set(self._grid.get_node_ids())
        new = [
            Message(RecordDict({"config": ConfigRecord()}), node, MessageType.QUERY)
            for node in sorted(connected - self._asked)
        ]
        self._asked |= connected
        refused = self._post.push(new, _ANNOUNCING) if new else []
        for message in new:
            self._questions[message.metadata.message_id] = message.metadata.dst_node_id
        for reply in chain(refused, self._post.arrivals()):
            node = self._questions.pop(reply.metadata.reply_to_message_id)
            if reply.has_error() and reply.error.code not in _FATAL:
                self._failed[node] = error_reason(reply)
                self._asked.discard(node)  # asked again if it is still there
                continue
            if reply.has_error():
                yield node, error_reason(reply)
                continue
            try:
                client_ids, share = _announcement(reply.content)
            except WireError as error:
                yield node, f"node {node} does not say whom it serves: {error}"
                continue
            self._shares[node] = share
            yield node, client_ids

    @property
    def _silent(self) -> set[int]:
        """Nodes whose answer is still to come."""
        return set(self._questions.values())

    def _not_heard(self) -> str:
        """Why nodes that are connected have not announced themselves, as far as that is known."""
        silent = sorted(self._silent)
        said = f"; no answer from node {few(silent)}" if silent else ""
        failed = {n: reason for n, reason in self._failed.items() if n not in self._shares}
        return said + "".join(f"; node {n}: {reason}" for n, reason in islice(failed.items(), 3))

    @property
    def _partitioned(self) -> bool:
        return any(number > 1 for _, number in self._shares.values())

    def _missing(self, min_nodes: int) -> str:
        """Who is still waited for, in words; empty if nobody is."""
        answered = len(self._shares)
        said = []
        if answered < min_nodes:
            said.append(
                f"{counted(min_nodes, 'node')}: {len(self._asked)} connected, {answered} of them answered"
            )
        served = set(self._shares.values())
        for number in sorted({number for _, number in served}):
            absent = [index for index in range(number) if (index, number) not in served]
            if absent:
                nodes = counted(len(absent), "node")
                said.append(f"{nodes} with partition-id {few(absent)} of {number}")
        return " and ".join(said)


def _announcement(content: RecordDict) -> tuple[list[str], tuple[int, int]]:
    """Client ids and share of a node's announcement; WireError if it is none."""
    said = records(content, ConfigRecord).get("clients", ConfigRecord())
    ids, share, shares = (said.get(key) for key in ("client-ids", "partition-id", "num-partitions"))
    if not (isinstance(ids, list) and isinstance(share, int) and isinstance(shares, int)):
        raise WireError("its answer is no announcement of clients")
    if not 0 <= share < shares <= _MOST_PARTITIONS:
        raise WireError(f"it claims share {share} of {shares}")
    return [str(client_id) for client_id in ids], (share, shares)
