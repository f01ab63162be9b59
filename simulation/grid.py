"""A Flower grid inside one process: the real ClientApp, mods and all, without network or polling.

Semantics are those of a SuperLink with SuperNodes: every message gets a content of its own, a node keeps
its `Context.state` from message to message, an exception becomes an error reply and undoes that message's
state changes, and a message past its time to live is not delivered.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path
from typing import TypeVar

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    UserConfig,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from server.state import SaveStates
from settings.errors import InputError, place_of
from simulation.node_state import NodeStates
from weights.wire import put

# All ids drawn have one length on the wire, so that equal runs count equal bytes.
_LEAST_RUN_ID = 1 << 62
_FIRST_NODE_ID = SUPERLINK_NODE_ID + 1


Announce = Callable[[Message, Iterable[Message]], None]
RecordType = ArrayRecord | ConfigRecord | MetricRecord
T = TypeVar("T")


class InProcessGrid(Grid):
    """Runs a ClientApp in this process, one message at a time, when its reply is pulled.

    Because a reply exists only once it is asked for, a server that consumes replies one by one never
    has more than one in memory.

    Args:
        client_app: Called for every message, so that its mods and its lifespan run.
        run_config: What `Context.run_config` holds in the ClientApp.
        node_configs: One node each; what `Context.node_config` holds there.
        run_id: Flower's id of the run; None draws one, so that no two runs share it.
        announce: Told of each message before it is delivered, and of those that wait behind it.
    """

    def __init__(
        self,
        client_app: ClientApp,
        run_config: UserConfig,
        node_configs: Sequence[UserConfig] = ({},),
        run_id: int | None = None,
        announce: Announce | None = None,
    ) -> None:
        self._client_app = client_app
        self._announce = announce
        run = Run.create_empty(_LEAST_RUN_ID + secrets.randbits(62) if run_id is None else run_id)
        self._contexts = {
            _FIRST_NODE_ID + index: Context(
                run.run_id, _FIRST_NODE_ID + index, dict(config), RecordDict(), dict(run_config)
            )
            for index, config in enumerate(node_configs)
        }
        drawn = secrets.token_hex(8)
        self._ids = (f"{drawn}-{number:019d}" for number in itertools.count())
        self._pending: dict[str, Message] = {}
        self._states: NodeStates | None = None
        self.set_run(run)

    def set_run(self, run: Run) -> None:
        """Set the run; messages that the server creates from now on belong to it."""
        self._run = run
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = run.run_id
        TaskIdentity.node_id = SUPERLINK_NODE_ID

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Deprecated by Flower in favour of `Message(...)`, but part of the interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Ids of all nodes; they are always connected."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages for delivery and give each its id."""
        ids = []
        for message in messages:
            message_id = next(self._ids)
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = _sent(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Deliver the next message (in the order of pushing) among `message_ids`; return its reply."""
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        for message_id in self._pending:
            if message_id in wanted:
                return [self._deliver(self._pending.pop(message_id))]
        return []

    def forget(self, message_ids: Iterable[str]) -> None:
        """Do not deliver these messages: nobody waits for the replies (`server.post.Forgets`)."""
        for message_id in [*message_ids]:
            self._pending.pop(message_id, None)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and collect the replies that come before `timeout` seconds have passed."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def states_saver(self) -> SaveStates:
        """What writes all that nodes remember now (`server.state.KeepsStates`)."""
        # A message leaves a state of its own behind: these do not change any more.
        states = {node_id: context.state for node_id, context in self._contexts.items()}

        def save(folder: Path, server_round: int, oldest: int) -> None:
            if self._states is None:
                self._states = NodeStates(folder)
            self._states.save(server_round, oldest, states)

        return save

    def load_states(self, folder: Path, server_round: int) -> None:
        """Let nodes remember what they did after that round."""
        self._states = NodeStates(folder)
        for node_id, state in self._states.load(server_round).items():
            self._contexts[node_id].state = state

    def _deliver(self, message: Message) -> Message:
        reply = self._call_client(message)
        if not reply.has_error() and _expired(message):
            reply = _error(message, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply came too late")
        reply.metadata.__dict__["_message_id"] = next(self._ids)
        return reply

    def _call_client(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        if node_id not in self._contexts:
            return _error(message, ErrorCode.NODE_UNAVAILABLE, f"there is no node {node_id}")
        if _expired(message):
            return _error(message, ErrorCode.MESSAGE_UNAVAILABLE, "the message expired")
        kept = self._contexts[node_id]
        context = Context(
            kept.run_id, node_id, dict(kept.node_config), _clone(kept.state), dict(kept.run_config)
        )
        if self._announce is not None:
            self._announce(message, self._pending.values())
        try:
            reply = self._client_app(_with_own_metadata(message), context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, not a Message")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            if not isinstance(error, InputError):
                reason += f" ({place_of(error)})"
            return _error(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
        kept.state = _clone(context.state)
        return reply


def _sent(message: Message) -> Message:
    """A message as the other side gets it: what either side changes, the other does not see."""
    own = _with_own_metadata(message)
    own.content = _clone(message.content)
    return own


def _with_own_metadata(message: Message) -> Message:
    """The same content under metadata that the client may change: the reply's sender needs the true ones."""
    own = _another(message)
    own.__dict__["_metadata"] = _another(message.metadata)
    return own


def _expired(message: Message) -> bool:
    return time.time() > message.metadata.created_at + message.metadata.ttl


def _error(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


def _clone(content: RecordDict) -> RecordDict:
    """Records of one's own over the same immutable bytes: nobody's change is seen by another."""
    return put(content.copy(), {name: _twin(record) for name, record in content.items()})


def _twin(record: RecordType) -> RecordType:
    return put(record.copy(), {key: _same(value) for key, value in record.items()})


def _same(value: object) -> object:
    """The same value, as another object where it can change."""
    if isinstance(value, Array):
        return _another(value)
    return [*value] if isinstance(value, list) else value


def _another(item: T) -> T:
    """A shallow copy; `copy.copy` takes its time."""
    own = object.__new__(type(item))
    own.__dict__.update(item.__dict__)
    return own
