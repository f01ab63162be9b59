"""Codecs by name, and records of arrays some of which are encoded."""

from collections.abc import Callable, Mapping

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord

from settings.errors import InputError
from settings.spec import construct, split_option
from weights.codecs.codec import Codec, NotEncodable, stype
from weights.codecs.eden import Eden
from weights.codecs.plain import BFloat16, Float16, Identity
from weights.codecs.step import Step
from weights.codecs.topk import TopK
from weights.codecs.uniform import Uniform
from weights.named import Array, NamedArrays, is_finite
from weights.wire import NUMPY_STYPE, WireError, pack, unpack

CODECS: dict[str, Callable[..., Codec]] = {
    "identity": Identity,
    "float16": Float16,
    "bfloat16": BFloat16,
    "uniform": Uniform,
    "step": Step,
    "eden": Eden,
    "topk": TopK,
}


def make_codec(spec: str) -> Codec:
    """The codec that `NAME[:key=value,...]` or `module:Class[:key=value,...]` names.

    Every biased codec also takes `feedback=true`, which is for the client to act on.

    Raises:
        InputError: Unknown name or option, a value out of range, a class that is no `Codec`, or
            feedback for an unbiased codec, which has no lasting error to feed back.
    """
    parsed, feedback = split_option(spec, "feedback")
    codec = construct(parsed, CODECS, "codec")
    if not isinstance(codec, Codec):
        raise InputError(
            f"codec {spec!r} is a {type(codec).__name__}, not a weights.codecs.codec.Codec"
        )
    if feedback and codec.unbiased:
        raise InputError(f"codec {spec!r} is unbiased: error feedback is for biased codecs")
    codec.feedback = feedback
    return codec


def make_codecs(specs: Mapping[str, str]) -> dict[str, Codec]:
    """Codecs by array name from their specs, one for all arrays with the same spec; InputError as `make_codec`."""
    made = {spec: make_codec(spec) for spec in set(specs.values())}
    return {name: made[spec] for name, spec in specs.items()}


def encode_arrays(
    codecs: Mapping[str, Codec], arrays: Mapping[str, Array], rng: np.random.Generator
) -> ArrayRecord:
    """A record of named arrays, encoded where a codec applies and packed as they are elsewhere.

    Args:
        codecs: By array name; one applies to float32 arrays of more than `codec.threshold` elements.
        arrays: By name.
        rng: Drawn from by randomised codecs, in the order of `arrays`.
    """
    record = ArrayRecord()
    for name, array in arrays.items():
        codec = codec_for(name, array, codecs)
        encoded = codec and _encode(codec, array, rng)
        record[name] = encoded or pack({name: array})[name]
    return record


def decode_arrays(
    record: ArrayRecord, codecs: Mapping[str, Codec], like: Mapping[str, Array]
) -> NamedArrays:
    """The arrays that a record of `encode_arrays` holds.

    Args:
        record: What came over the wire. An array that a codec applies to may come as it is instead,
            which is how one that is not finite travels.
        codecs: What was asked for, by array name; the record does not get to choose.
        like: The arrays that are expected; names, shapes and dtypes must agree.

    Returns:
        By name in the order of `like`; decoded ones are writable, the others read-only views.

    Raises:
        WireError: Anything that differs from `like` or cannot be decoded.
    """
    encoded = {
        name: codec
        for name, array in like.items()
        if (codec := codec_for(name, array, codecs))
        and name in record
        and record[name].stype != NUMPY_STYPE
    }
    raw = unpack(
        ArrayRecord({name: array for name, array in record.items() if name not in encoded}),
        {name: array for name, array in like.items() if name not in encoded},
    )
    return {
        name: _decode(name, record[name], encoded[name], array) if name in encoded else raw[name]
        for name, array in like.items()
    }


def codec_for(name: str, array: Array, codecs: Mapping[str, Codec]) -> Codec | None:
    """The codec of an array that is large enough for it; both sides decide alike."""
    codec = codecs.get(name)
    if codec and array.dtype == np.float32 and array.size > codec.threshold:
        return codec
    return None


def _encode(codec: Codec, array: Array, rng: np.random.Generator) -> FlowerArray | None:
    """None for an array that goes as it is, because no codec takes it."""
    try:
        data = codec.encode(array, rng)
    except NotEncodable:
        return None
    return FlowerArray(str(array.dtype), tuple(array.shape), stype(codec), data)


def _decode(name: str, array: FlowerArray, codec: Codec, expected: Array) -> Array:
    claimed = (array.stype, array.dtype, tuple(array.shape))
    wanted = (stype(codec), str(expected.dtype), expected.shape)
    if claimed != wanted:
        raise WireError(f"{name} is {_said(claimed)}, not {_said(wanted)}")
    try:
        decoded = codec.decode(array.data, expected.shape)
    except ValueError as error:  # a user's codec need not know of WireError
        raise WireError(f"{name} cannot be decoded: {error}") from error
    if decoded.shape != expected.shape or decoded.dtype != expected.dtype:
        raise WireError(f"{name} was decoded to {decoded.dtype}{list(decoded.shape)}")
    if not is_finite({name: decoded}):
        raise WireError(f"{name} was decoded to values that are not finite")
    return decoded


def _said(kind: tuple[str, str, tuple[int, ...]]) -> str:
    return f"{kind[0]} of {kind[1]}{list(kind[2])}"
