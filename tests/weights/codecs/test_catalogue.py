"""Specs, records, and codecs of a user's own."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

from settings.errors import InputError
from weights.codecs.catalogue import CODECS, decode_arrays, encode_arrays, make_codec
from weights.codecs.codec import stype
from weights.named import NamedArrays
from weights.wire import NUMPY_STYPE, WireError, pack, unpack

OWN = """
import numpy as np
from weights.codecs.codec import Codec

class Signs(Codec):
    name = "signs"
    unbiased = False

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def encode(self, array, rng):
        return np.packbits(array > 0).tobytes()

    def decode(self, payload, shape):
        if len(payload) != -(-np.prod(shape) // 8):
            raise ValueError("wrong length")
        bits = np.unpackbits(np.frombuffer(payload, np.uint8), count=int(np.prod(shape)))
        return (self.scale * (2 * bits.astype(np.float32) - 1)).astype(np.float32).reshape(shape)

class Broken(Signs):
    def decode(self, payload, shape):
        return super().decode(payload, shape) * np.float32("nan")

def not_a_codec() -> dict:
    return {}
"""


def arrays() -> NamedArrays:
    rng = np.random.default_rng(0)
    return {
        "kernel": rng.standard_normal((200, 150)).astype(np.float32),
        "bias": rng.standard_normal(150).astype(np.float32),
        "steps": np.arange(30_000),
    }


@pytest.mark.parametrize(
    "spec",
    [
        "unknown",
        "uniform:bits=0",
        "uniform:bits=17",
        "uniform:rounding=up",
        "uniform:threshold=-1",
        "uniform:width=3",
        "step",
        "step:bits=1,error=0.1",
        "step:bits=17",
        "step:bits=-1",
        "step:error=nan",
        "step:step=inf",
        "eden:bits=9",
        "eden:bits=2.5",
        "topk:fraction=0",
        "topk:fraction=1.5",
    ],
)
def test_bad_specs(spec: str) -> None:
    with pytest.raises(InputError):
        make_codec(spec)


@pytest.mark.parametrize("name", CODECS)
def test_a_record_holds_encoded_and_plain_arrays(name: str) -> None:
    sent = arrays()
    codec = make_codec("step:bits=2" if name == "step" else name)
    codecs = dict.fromkeys(sent, codec)
    record = encode_arrays(codecs, sent, np.random.default_rng(0))
    assert {key: record[key].stype for key in record} == {
        "kernel": f"fedferry.{name}.v1",
        "bias": NUMPY_STYPE,
        "steps": NUMPY_STYPE,
    }
    received = decode_arrays(record, codecs, sent)
    assert [*received] == [*sent]
    np.testing.assert_array_equal(received["bias"], sent["bias"])
    np.testing.assert_array_equal(received["steps"], sent["steps"])
    assert received["kernel"].shape == (200, 150)
    with pytest.raises(WireError, match="was not decoded"):
        unpack(record, sent)
    with pytest.raises(TypeError, match="fedferry"):
        record["kernel"].numpy()


def test_what_no_codec_takes_travels_as_it_is() -> None:
    sent = arrays()
    sent["kernel"][3, 4] = np.nan
    codecs = {"kernel": make_codec("eden")}
    record = encode_arrays(codecs, sent, np.random.default_rng(0))
    assert record["kernel"].stype == NUMPY_STYPE
    np.testing.assert_array_equal(decode_arrays(record, codecs, sent)["kernel"], sent["kernel"])


def test_the_record_does_not_choose() -> None:
    sent = arrays()
    asked = {"kernel": make_codec("uniform")}
    record = encode_arrays(asked, sent, np.random.default_rng(0))
    kernel = record["kernel"]

    def refused(changed: ArrayRecord, match: str) -> None:
        with pytest.raises(WireError, match=match):
            decode_arrays(changed, asked, sent)

    def replaced(**fields: object) -> ArrayRecord:
        given = {"dtype": kernel.dtype, "shape": kernel.shape, "stype": kernel.stype}
        array = FlowerArray(**(given | {"data": kernel.data} | fields))  # type: ignore[call-overload]
        return ArrayRecord({key: array if key == "kernel" else record[key] for key in record})

    decode_arrays(replaced(), asked, sent)
    refused(replaced(stype="fedferry.eden.v1"), "kernel is fedferry.eden.v1")
    refused(replaced(stype="fedferry.uniform.v2"), "uniform.v2")
    refused(replaced(dtype="float64"), "float64")
    refused(replaced(shape=(150, 200)), "kernel is")
    refused(replaced(shape=(2**40, 2**20)), "kernel is")
    refused(replaced(data=kernel.data[:-1]), "kernel cannot be decoded: .*truncated")
    refused(ArrayRecord({"kernel": kernel}), "missing")
    refused(ArrayRecord({key: record[key] for key in ("bias", "steps")}), "missing")
    refused(
        encode_arrays({"bias": make_codec("identity:threshold=0")}, sent, np.random.default_rng(0)),
        "bias",
    )
    wrong = pack({**sent, "kernel": sent["kernel"].T.copy()})
    refused(wrong, "kernel")


def test_a_users_own_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_codec.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    codec = make_codec("own_codec:Signs:scale=0.5")
    assert stype(codec) == "fedferry.signs.v1"
    sent = arrays()
    record = encode_arrays({"kernel": codec}, sent, np.random.default_rng(0))
    received = decode_arrays(record, {"kernel": codec}, sent)["kernel"]
    np.testing.assert_array_equal(received, np.where(sent["kernel"] > 0, 0.5, -0.5))
    with pytest.raises(WireError, match="not finite"):
        decode_arrays(record, {"kernel": make_codec("own_codec:Broken")}, sent)
    short = ArrayRecord(
        {**record, "kernel": FlowerArray("float32", (200, 150), stype(codec), b"1")}
    )
    with pytest.raises(WireError, match="kernel cannot be decoded: wrong length"):
        decode_arrays(short, {"kernel": codec}, sent)
    with pytest.raises(InputError, match="is a dict, not"):
        make_codec("own_codec:not_a_codec")
