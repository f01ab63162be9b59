"""Flower mods: the client's half of compression, which zeroes, clips and encodes the update, and the reply to a
message that comes again.

What compression does is in the `compression` config of the message that `server.compression` sent; a message
without one passes through unchanged. So a ClientApp that carries this mod works with and without it.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from weights.codecs.catalogue import decode_arrays, encode_arrays, make_codecs
from weights.codecs.codec import Codec
from weights.named import NamedArrays, is_finite, l2_norm, linf_norm
from weights.wire import AGAIN, COMPRESSION, claimed, pack, records, unpack


def compress(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Decode the broadcast model; zero, clip and encode the update; say what was done."""
    asked = records(message.content, ConfigRecord).get(COMPRESSION)
    if asked is None:
        return call_next(message, context)
    if "broadcast-codecs" in asked:
        [(name, record)] = records(message.content, ArrayRecord).items()
        codecs = _codecs(asked["broadcast-codecs"])
        message.content[name] = pack(decode_arrays(record, codecs, like=claimed(record)))
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    [(name, record)] = records(reply.content, ArrayRecord).items()
    update = unpack(record, like=claimed(record))
    if is_finite(update):
        update, said = zero_and_clip(update, asked)
    else:
        # The server counts it and gives it no weight; as in TFF its norm counts as zero.
        said = {"zeroing-below": True, "clipping-below": True}
    reply.content[COMPRESSION] = ConfigRecord(dict(said))
    reply.content[name] = _encode(update, asked, _residual(message, context), context)
    return reply


def reply_again(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Give the same reply to a message that comes again, where a second one would be another: error feedback.

    The server sends a message again when it or the reply to it was lost, and cannot know which. What encoding
    lost would be added to the client's update twice. So the node's state keeps a client's last reply.
    """
    asked = records(message.content, ConfigRecord)
    if COMPRESSION not in asked:
        return call_next(message, context)
    first = str(asked[AGAIN]["of"]) if AGAIN in asked else message.metadata.message_id
    place = f"reply/{_client(message, context)}"
    kept = records(context.state, ConfigRecord).get(place)
    if AGAIN in asked and kept is not None and kept["to"] == first:
        content = recorddict_from_proto(RecordDictProto.FromString(cast(bytes, kept["content"])))
        return Message(content, reply_to=message)
    reply = call_next(message, context)
    if not reply.has_error() and _residual(message, context) in context.state:
        content = recorddict_to_proto(reply.content).SerializeToString()
        context.state[place] = ConfigRecord({"to": first, "content": content})
    return reply


def _residual(message: Message, context: Context) -> str:
    """Where in the node's state a client's residual is."""
    return f"residual/{_client(message, context)}"


def _encode(
    update: NamedArrays, asked: Mapping[str, Any], residual: str, context: Context
) -> ArrayRecord:
    """Encode an update; with error feedback, what encoding lost is added to the client's next update.

    Error feedback (Seide et al. 2014; Karimireddy et al., arXiv 1901.09847): send Q(update + e), keep
    e <- update + e - Q(update + e) in the node's state under the name `residual`.
    """
    codecs = _codecs(asked.get("codecs", "{}"))
    rng = np.random.default_rng(asked["seed"])
    feedback = {name for name, codec in codecs.items() if codec.feedback and name in update}
    if not is_finite(update):
        feedback = set()  # what a diverged round lost would never leave the residual again
    if feedback and residual in context.state:
        kept = records(context.state, ArrayRecord)[residual]
        lost = unpack(kept, like={name: update[name] for name in kept})
        update = {n: array + lost[n] if n in lost else array for n, array in update.items()}
    record = encode_arrays(codecs, update, rng)
    if feedback:
        sent = decode_arrays(record, codecs, like=update)
        context.state[residual] = pack({name: update[name] - sent[name] for name in feedback})
    return record


def _client(message: Message, context: Context) -> str:
    """Whose update it is: the client that the server named, or else whom this node stands for."""
    config = records(message.content, ConfigRecord).get("config", ConfigRecord())
    return str(config.get("client-id", context.node_id))


def zero_and_clip(
    update: NamedArrays, asked: Mapping[str, Any]
) -> tuple[NamedArrays, dict[str, bool]]:
    """Zeroing (L-infinity norm) and then clipping (global L2 norm), as TFF nests them.

    Args:
        update: Finite arrays.
        asked: Thresholds `zeroing-norm` and `clipping-norm` with the quantile estimates they come from,
            `zeroing-estimate` and `clipping-estimate`; both or neither of a pair.

    Returns:
        The update, and for each pair whether the norm was at or under the estimate (`-below`) and
        whether the threshold did something (`zeroed`, `clipped`).
    """
    said: dict[str, bool] = {}
    if "zeroing-norm" in asked:
        largest = linf_norm(update)
        said["zeroing-below"] = largest <= asked["zeroing-estimate"]
        said["zeroed"] = largest > asked["zeroing-norm"]
        if said["zeroed"]:
            update = {name: np.zeros_like(array) for name, array in update.items()}
    if "clipping-norm" in asked:
        norm = l2_norm(update)
        limit = float(asked["clipping-norm"])
        said["clipping-below"] = norm <= asked["clipping-estimate"]
        said["clipped"] = norm > limit
        if said["clipped"]:
            factor = np.float32(limit / norm)
            update = {name: array * factor for name, array in update.items()}
    return update, said


def _codecs(text: object) -> dict[str, Codec]:
    """Codecs by tensor name from the JSON that the server sent."""
    return make_codecs(json.loads(str(text)))
