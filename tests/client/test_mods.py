"""The client's half of compression: zeroing, clipping, and what encoding lost."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from client.mods import compress, reply_again, zero_and_clip
from simulation.grid import InProcessGrid
from weights.wire import pack

FEEDBACK = {"w": "topk:fraction=0.25,threshold=0,feedback=true"}


@pytest.fixture(autouse=True)
def run() -> None:
    """Messages can be made only inside a run."""
    InProcessGrid(ClientApp(), {})


def node() -> Context:
    return Context(1, 2, {}, RecordDict(), {})


def asking(codecs: dict[str, str], client_id: str = "", again: str = "") -> Message:
    content = RecordDict({"compression": ConfigRecord({"codecs": json.dumps(codecs), "seed": [0]})})
    if client_id:
        content["config"] = ConfigRecord({"client-id": client_id})
    if again:
        content["again"] = ConfigRecord({"of": again})
    message = Message(content, 2, "train")
    message.metadata.__dict__["_message_id"] = f"id {id(message)}"
    return message


def replying(*values: float) -> ClientAppCallable:
    """A client whose update is so, as `w` and as `b`."""
    update = np.array(values, np.float32)

    def call_next(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": pack({"w": update, "b": update})}), reply_to=message)

    return call_next


def test_a_diverged_round_does_not_stay_in_the_residual() -> None:
    context, sent = node(), []
    for values in ([4.0, 1.0, 2.0, 3.0], [np.nan, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]):
        reply = compress(asking(FEEDBACK), context, replying(*values))
        arrays = reply.content.array_records["arrays"]
        np.testing.assert_array_equal(arrays["b"].numpy(), np.array(values, np.float32))
        sent.append(arrays["w"])
        [residual] = context.state.array_records.values()
        assert list(residual) == ["w"]
        assert np.isfinite(residual["w"].numpy()).all()
    kinds = [array.stype for array in sent]
    assert kinds == ["fedferry.topk.v1", "numpy.ndarray", "fedferry.topk.v1"]
    np.testing.assert_array_equal(sent[1].numpy(), [np.nan, 1.0, 1.0, 1.0])
    # Round 1 sent the 4 and kept the rest; round 3 had nothing of its own to send but the 3.
    np.testing.assert_allclose(residual["w"].numpy(), [0.0, 1.0, 2.0, 0.0], atol=1e-3)


def test_each_client_of_a_node_has_a_residual_of_its_own() -> None:
    context = node()
    for client_id in ("a", "b", ""):
        compress(asking(FEEDBACK, client_id), context, replying(4.0, 1.0, 2.0, 3.0))
    kept = context.state.array_records
    assert sorted(kept) == ["residual/2", "residual/a", "residual/b"]
    for residual in kept.values():
        np.testing.assert_allclose(residual["w"].numpy(), [0.0, 1.0, 2.0, 3.0], atol=1e-3)


def test_a_message_that_comes_again_gets_the_same_reply() -> None:
    context, first = node(), asking(FEEDBACK, "a")

    def answer(message: Message, *values: float) -> tuple[bytes, bytes]:
        def compressed(message: Message, context: Context) -> Message:
            return compress(message, context, replying(*values))

        reply = reply_again(message, context, compressed)
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        sent = reply.content.array_records["arrays"]["w"].data
        return sent, context.state.array_records["residual/a"]["w"].data

    once = answer(first, 4.0, 1.0, 2.0, 3.0)
    name = first.metadata.message_id
    for _ in range(2):  # what it would send now does not matter
        assert answer(asking(FEEDBACK, "a", again=name), 9.0, 9.0, 9.0, 9.0) == once
    # The first one of this round never came: it is worked on, and then answered again.
    then = answer(asking(FEEDBACK, "a", again="lost"), 0.0, 0.0, 0.0, 0.0)
    assert then != once
    assert answer(asking(FEEDBACK, "a", again="lost"), 0.0, 0.0, 0.0, 0.0) == then
    # One that does not say that it comes again does not.
    assert answer(first, 0.0, 0.0, 0.0, 0.0) != then


def test_only_replies_that_would_be_others_the_second_time_are_kept() -> None:
    def failing(message: Message, context: Context) -> Message:
        return Message(Error(1, "no data"), reply_to=message)

    def compressed(message: Message, context: Context) -> Message:
        return compress(message, context, replying(4.0, 1.0, 2.0, 3.0))

    context = node()
    reply_again(asking({"w": "float16"}), context, compressed)
    reply_again(Message(RecordDict(), 2, "train"), context, replying(1.0))
    assert not context.state
    reply_again(asking(FEEDBACK), context, compressed)
    kept = context.state["reply/2"]
    reply_again(asking(FEEDBACK), context, failing)
    assert context.state["reply/2"] is kept


def test_clipping_and_zeroing() -> None:
    update = {"a": np.array([3.0, 0.0], np.float32), "b": np.array([[4.0]], np.float32)}
    asked = {
        "zeroing-norm": 5.0,
        "zeroing-estimate": 3.5,
        "clipping-norm": 2.5,
        "clipping-estimate": 2.5,
    }
    clipped, said = zero_and_clip(update, asked)
    assert said == {
        "zeroing-below": False,
        "zeroed": False,
        "clipping-below": False,
        "clipped": True,
    }
    np.testing.assert_allclose(clipped["a"], [1.5, 0.0])
    np.testing.assert_allclose(clipped["b"], [[2.0]])
    zeroed, said = zero_and_clip(update, asked | {"zeroing-norm": 3.9})
    assert said["zeroed"]
    assert said["clipping-below"]
    assert not any(array.any() for array in zeroed.values())
    assert zero_and_clip(update, {}) == (update, {})
    at = {"zeroing-norm": 4.0, "zeroing-estimate": 4.0}
    at |= {"clipping-norm": 5.0, "clipping-estimate": 5.0}
    assert zero_and_clip(update, at) == (
        update,
        {"zeroing-below": True, "zeroed": False, "clipping-below": True, "clipped": False},
    )


def test_what_an_update_that_is_not_finite_says_of_its_norm() -> None:
    """As in TFF, where it counts as zero, which is under every threshold."""
    message = asking({})
    message.content.config_records["compression"]["clipping-norm"] = 1e-9
    reply = compress(message, node(), replying(np.nan, 1.0))
    said = reply.content["compression"]
    assert said == ConfigRecord({"zeroing-below": True, "clipping-below": True})
    np.testing.assert_array_equal(
        reply.content.array_records["arrays"]["w"].numpy(), np.array([np.nan, 1.0], np.float32)
    )


def test_a_message_that_asks_for_nothing_passes() -> None:
    reply = compress(Message(RecordDict(), 2, "train"), node(), replying(1.0))
    assert list(reply.content) == ["arrays"]
