"""The client's half of compression: zeroing, clipping, and what encoding lost."""

import json
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.mods import compress, zero_and_clip
from simulation.grid import InProcessGrid
from weights.wire import pack


def test_a_diverged_round_does_not_stay_in_the_residual() -> None:
    InProcessGrid(ClientApp(), {})  # messages can be made only inside a run
    codecs = json.dumps({"w": "topk:fraction=0.25,threshold=0,feedback=true"})
    asked = RecordDict({"compression": ConfigRecord({"codecs": codecs, "seed": [0]})})
    context = Context(1, 2, {}, RecordDict(), {})
    sent = []
    for values in ([4.0, 1.0, 2.0, 3.0], [np.nan, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]):
        update = np.array(values, np.float32)

        def call_next(message: Message, context: Context, update: Any = update) -> Message:
            return Message(RecordDict({"arrays": pack({"w": update})}), reply_to=message)

        reply = compress(Message(asked, 2, "train"), context, call_next)
        sent.append(reply.content.array_records["arrays"]["w"].stype)
        [residual] = context.state.array_records.values()
        assert np.isfinite(residual["w"].numpy()).all()
    assert sent == ["fedferry.topk.v1", "numpy.ndarray", "fedferry.topk.v1"]
    # Round 1 sent the 4 and kept the rest; round 3 had nothing of its own to send but the 3.
    np.testing.assert_allclose(residual["w"].numpy(), [0.0, 1.0, 2.0, 0.0], atol=1e-3)


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
