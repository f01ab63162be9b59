"""Messages that a grid in this process will deliver next, so that clients can be trained together."""

from collections.abc import Iterable, Iterator, Mapping

from flwr.app import ArrayRecord, ConfigRecord, Message

from client.update import Result
from weights.wire import COMPRESSION, records


class Lookahead:
    """Who else is about to be trained, and what is known of them already.

    Nothing is ever announced where Flower delivers messages one by one: then every client trains alone.
    """

    def __init__(self) -> None:
        self._current = ""
        self._asked: object = None
        self._upcoming: Iterable[Message] = ()
        self._done: dict[str, Result | Exception] = {}

    def announce(self, message: Message, upcoming: Iterable[Message]) -> None:
        """Say which messages come after the one that is delivered next; read only while that is handled."""
        self._current = message.metadata.message_id
        if self._current not in self._done:
            self._asked = _what(message)  # before a mod changes it
            self._upcoming = upcoming

    def announced(self, message: Message) -> bool:
        """Whether a grid in this process delivers it: one that knows who comes next."""
        return message.metadata.message_id == self._current

    def take(self, message: Message) -> Result | None:
        """The result of a message that was answered together with an earlier one; raises what that raised."""
        result = self._done.pop(message.metadata.message_id, None)
        if isinstance(result, Exception):
            raise result
        return result

    def keep(self, results: Mapping[str, Result | Exception]) -> None:
        """Results by message id, in place of those that nobody asked for."""
        self._done = dict(results)

    def peers(self) -> Iterator[Message]:
        """Messages that ask for what the announced one asks, of the same node and for another client."""
        return (
            other
            for other in self._upcoming
            if other.metadata.message_id not in self._done
            and other.has_content()
            and _what(other) == self._asked
        )


def _what(message: Message) -> object:
    """All that is asked except of whom: the same arrays are the same bytes object."""
    said = records(message.content, ConfigRecord)
    config = {**said.get("config", {})}
    config.pop("client-id", None)
    codecs = said[COMPRESSION].get("broadcast-codecs") if COMPRESSION in said else None
    data = [
        id(array.data)
        for record in records(message.content, ArrayRecord).values()
        for array in record.values()
    ]
    metadata = message.metadata
    return metadata.message_type, metadata.dst_node_id, config, codecs, data
