"""Bytes on the wire: the arrays' payload, and whole messages as Flower serialises them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Message
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER
from flwr.supercore.inflatable.inflatable_object import InflatableObject

from weights.wire import payload_bytes


@dataclass
class Traffic:
    """Bytes of one round of training.

    Attributes:
        broadcasted: Array payload to the clients.
        broadcasted_message: Whole messages to the clients.
        aggregated: Array payload from the clients.
        aggregated_message: Whole replies.
    """

    broadcasted: int = 0
    broadcasted_message: int = 0
    aggregated: int = 0
    aggregated_message: int = 0

    def count_sent(self, messages: Iterable[Message]) -> None:
        """Count messages to clients."""
        for message in messages:
            self.broadcasted += payload(message)
            self.broadcasted_message += message_bytes(message)

    def count_received(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Count replies while they pass."""
        for reply in replies:
            self.aggregated += payload(reply)
            self.aggregated_message += message_bytes(reply)
            yield reply


def message_bytes(message: Message) -> int:
    """Bytes of all objects that Flower sends for a message: it, its records, arrays and data chunks.

    Computed on a likeness with stand-ins for the data: hashing the data itself, as sending does, would
    cost more than a round's whole overhead.
    """
    if message.has_error():
        return len(message.deflate())
    content = message.content.copy()
    data = 0
    for name, record in message.content.array_records.items():
        likeness = ArrayRecord(
            {key: Array(a.dtype, a.shape, a.stype, b"") for key, a in record.items()}
        )
        for key, array in record.items():
            sizes = _chunk_sizes(len(array.data))
            # Ids have the length of a SHA-256 and differ; that is all that other objects' sizes depend on.
            ids = [f"{data + start:064x}" for start in range(len(sizes))]
            likeness[key].__dict__["_chunks"] = [(chunk_id, None) for chunk_id in ids]
            data += sum(sizes)
        content[name] = likeness
    empty = Message(metadata=message.metadata, content=content)  # type: ignore[call-overload]
    return data + sum(len(item.deflate()) for item in _objects(empty))


def _chunk_sizes(length: int) -> list[int]:
    """Sizes of the chunks that Flower cuts an array's data into, as sent: with their heads."""
    step = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    sizes = [min(step, length - start) for start in range(0, length, step)]
    head = f"ArrayChunk{HEAD_VALUE_DIVIDER}{HEAD_VALUE_DIVIDER}"
    return [len(f"{head}{size}") + len(HEAD_BODY_DIVIDER) + size for size in sizes]


def _objects(item: InflatableObject) -> Iterator[InflatableObject]:
    yield item
    for child in (item.children or {}).values():
        if child is not None:
            yield from _objects(child)


def payload(message: Message) -> int:
    """Bytes of all arrays' data in a message; 0 for an error."""
    if message.has_error():
        return 0
    return sum(payload_bytes(record) for record in message.content.array_records.values())
