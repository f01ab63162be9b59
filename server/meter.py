"""Bytes on the wire: the arrays' payload, and whole messages as Flower serialises them."""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, MetricRecord
from flwr.app.typing import ConfigRecordValues
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde_utils import metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.constant import HEAD_BODY_DIVIDER, HEAD_VALUE_DIVIDER

_ID = 64


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

    def count_sent(self, messages: Sequence[Message]) -> None:
        """Count messages to clients; arrays that many of them share are looked at once."""
        known: dict[int, tuple[int, int]] = {}
        for message in messages:
            payload, whole = sizes(message, known)
            self.broadcasted += payload
            self.broadcasted_message += whole

    def count_received(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Count replies while they pass."""
        for reply in replies:
            payload, whole = sizes(reply, {})
            self.aggregated += payload
            self.aggregated_message += whole
            yield reply


def sizes(message: Message, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Bytes of all arrays' data in a message, and of all objects that Flower sends for it: it, records, arrays, chunks.

    Computed from their sizes: to make the objects, and to hash the data as sending does, would cost more
    than all else in a round. What Flower computes ids for has the length of a SHA-256.

    Args:
        message: An error has no arrays.
        known: Sizes of array records by `id`, for the next message: of records that live until then.
    """
    if message.has_error():
        return 0, len(message.deflate())
    payload = total = 0
    for record in message.content.values():
        if isinstance(record, ArrayRecord):
            if (size := known.get(id(record))) is None:
                arrays = [(k, a.dtype, a.shape, a.stype, len(a.data)) for k, a in record.items()]
                size = known[id(record)] = _array_record_bytes(tuple(arrays))
            payload += size[0]
            total += size[1]
        else:
            total += _record_bytes(record)
    said = message.metadata
    body = _body_bytes(
        (said.run_id, said.src_node_id, said.dst_node_id, said.src_task_id, said.dst_task_id),
        len(said.reply_to_message_id),
        len(said.group_id),
        said.message_type,
    )
    total += _references("RecordDict", tuple(message.content)) + _framed("Message", 1, body)
    return payload, total


@functools.lru_cache(maxsize=4096)
def _body_bytes(ids: tuple[Any, ...], reply_to: int, group: int, kind: str) -> int:
    """Bytes of a message's metadata, given how long the ids are that are text."""
    run, source, destination, *tasks = ids
    texts = "0" * reply_to, "0" * group
    metadata = Metadata(run, "", source, destination, *texts, 1.0, 1.0, kind, *tasks)
    size: int = ProtoMessage(metadata=metadata_to_proto(metadata)).ByteSize()
    return size


def _length(value: ConfigRecordValues) -> object:
    """What says how many bytes a value takes: of a number, its kind and its highest bit."""
    kind = type(value)
    if isinstance(value, list):
        return tuple([_length(item) for item in value])
    if isinstance(value, str | bytes):
        return kind, len(value.encode() if isinstance(value, str) else value)
    if isinstance(value, int):
        return kind, value < 0, (~value if value < 0 else value).bit_length()
    return kind


_SIZES: dict[tuple[object, ...], int] = {}
"""Bytes of the records that have been measured, by their kind and their values' lengths."""
_MOST, _LARGEST = 1024, 2**14
"""Of these: how many, and bytes of a record. What a stranger may send must not stay."""


def _record_bytes(record: ConfigRecord | MetricRecord) -> int:
    """Bytes of a record of settings or metrics."""
    lengths = type(record), *[(key, _length(value)) for key, value in record.items()]
    size = _SIZES.get(lengths)
    if size is None:
        size = len(record.deflate())
        if size <= _LARGEST:
            if len(_SIZES) == _MOST:
                _SIZES.clear()
            _SIZES[lengths] = size
    return size


Structure = tuple[tuple[str, str, tuple[int, ...], str, int], ...]
"""An array record's arrays: (name, dtype, shape, stype, bytes of data) each."""


@functools.lru_cache(maxsize=256)
def _array_record_bytes(structure: Structure) -> tuple[int, int]:
    """Bytes of an array record's data, and of the record with its arrays and their chunks."""
    total = _references("ArrayRecord", tuple([name for name, *_ in structure]))
    step = FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    for _, dtype, shape, stype, length in structure:
        chunks = [min(step, length - start) for start in range(0, length, step)]
        total += sum(_framed("ArrayChunk", 0, size) for size in chunks)
        said = {"dtype": dtype, "shape": shape, "stype": stype}
        body = json.dumps({**said, "arraychunk_ids": [*range(len(chunks))]})
        total += _framed("Array", len(chunks), len(body))
    return sum([length for *_, length in structure]), total


@functools.lru_cache(maxsize=256)
def _references(kind: str, names: tuple[str, ...]) -> int:
    """Bytes of an object that is a table of other objects' ids by name."""
    return _framed(kind, len(names), len(json.dumps(dict.fromkeys(names, "0" * _ID))))


def _framed(kind: str, children: int, body: int) -> int:
    """Bytes of an object with its head: its kind, its children's ids, its body's length."""
    ids = max(children * (_ID + 1) - 1, 0)
    return (
        len(kind)
        + ids
        + len(str(body))
        + 2 * len(HEAD_VALUE_DIVIDER)
        + len(HEAD_BODY_DIVIDER)
        + body
    )
