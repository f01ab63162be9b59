"""A wrapper that gives any Flower strategy compressed updates, adaptive zeroing and clipping.

The server's half: it tells clients what to do in the config of each message, decodes what comes back, and
hands the wrapped strategy ordinary replies. `client.mods` is the other half.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from logging import WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from server.adapter import TrainedModels
from server.adaptive_norm import AdaptiveNorm, default_clipping, default_zeroing
from server.allocation import IDENTITY, make_allocation
from server.replies import only, refusal
from server.strategy import WeightedFedAvg
from settings.schema import Settings
from weights.codecs.catalogue import (
    codec_for,
    decode_arrays,
    encode_arrays,
    make_codec,
    make_codecs,
)
from weights.codecs.codec import Codec
from weights.named import NamedArrays, is_finite, l2_norm, linf_norm
from weights.wire import COMPRESSION, WireError, claimed, pack, payload_bytes, records, unpack

_SAID = ("zeroing-below", "zeroed", "clipping-below", "clipped")
_SLACK = {"exact": 1.001, "lossy": 10.0, "feedback": 100.0}
"""Times its threshold that a norm may be, by what happens between clipping and this server."""

DEFAULT_CODECS = {
    "mean": IDENTITY,
    "robust": IDENTITY,
    "compression": "step:bits=1.06,rounding=nearest",
}


class CompressedAggregation(Strategy):
    """`tff.learning.compression_aggregator` around a strategy: zeroing, clipping, then the codec.

    Args:
        strategy: Does everything but compression: `server.strategy.WeightedFedAvg` with the decoded model updates;
            any other, such as Flower's FedAdam, by way of `server.adapter.TrainedModels`.
        codec: Spec of the codec for model updates, or `adaptive:budget=BYTES`.
        broadcast_codec: Spec of the codec for the model on its way to the clients; the server keeps
            the exact one.
        zeroing: Updates whose L-infinity norm exceeds its threshold become zero; None: never.
        clipping: Updates whose L2 norm exceeds its threshold are scaled down to it; None: never.
        trained: Names of the arrays that clients send; None: all that are broadcast.
        seed: Of the codecs' random rounding.

    Raises:
        InputError: A codec spec that cannot be read.
    """

    def __init__(
        self,
        strategy: Strategy,
        codec: str = IDENTITY,
        *,
        broadcast_codec: str = IDENTITY,
        zeroing: AdaptiveNorm | None = None,
        clipping: AdaptiveNorm | None = None,
        trained: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        self._strategy = strategy
        self._training = (
            strategy if isinstance(strategy, WeightedFedAvg) else TrainedModels(strategy, trained)
        )
        self._allocation = make_allocation(codec)
        self._codecs: dict[str, Codec] = {}
        self._broadcast_spec, self._broadcast_codec = broadcast_codec, make_codec(broadcast_codec)
        self._norms = {
            name: norm for name, norm in (("zeroing", zeroing), ("clipping", clipping)) if norm
        }
        self._trained = trained
        self._seed = seed
        self._model: NamedArrays = {}
        self._expected: NamedArrays = {}
        self._most = 0  # bytes of payload: more than any codec makes
        self.measurements: dict[str, float] = {}

    def summary(self) -> None:
        """Log what the wrapped strategy does."""
        self._strategy.summary()

    def state(self) -> dict[str, float]:
        """What has adapted so far, for a checkpoint."""
        norms = {name: norm.estimate for name, norm in self._norms.items()}
        return norms | self._allocation.state()

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint's `state`."""
        for name, norm in self._norms.items():
            norm.estimate = state[name]
        self._allocation.load_state(state)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """The wrapped strategy's messages, with the encoded model and what clients are to do."""
        messages = list(self._training.configure_train(server_round, arrays, config, grid))
        self._model = unpack(arrays, like=claimed(arrays))
        names = self._model if self._trained is None else self._trained
        self._expected = {name: self._model[name] for name in names}
        self._most = sum(2 * array.nbytes + 4096 for array in self._expected.values())
        asked = self._plan(server_round)
        if not asked:
            return messages
        encoded = self._encode_broadcast(server_round)
        for index, message in enumerate(messages):
            own = ConfigRecord({**asked, "seed": [self._seed, server_round, index]})
            # A content of its own for each: a strategy may have put one into all messages.
            content = RecordDict({**message.content, COMPRESSION: own})
            if encoded is not None:
                [name] = records(message.content, ArrayRecord)
                content[name] = encoded
            message.content = content
        return messages

    def _plan(self, server_round: int) -> dict[str, Any]:
        """Choose the round's codecs; what the clients are told, the same for all of them."""
        expected = self._expected
        specs = self._allocation.specs(expected)
        self._codecs = make_codecs(specs)
        encoded = [name for name, array in expected.items() if codec_for(name, array, self._codecs)]
        if server_round == 1 and specs and not encoded:
            most = min(codec.threshold for codec in self._codecs.values())
            log(WARNING, "the codec encodes nothing: no tensor has over %d elements", most)
        asked: dict[str, Any] = {"codecs": json.dumps(specs)} if specs else {}
        if self._broadcast_spec != IDENTITY:
            asked["broadcast-codecs"] = json.dumps(dict.fromkeys(self._model, self._broadcast_spec))
        for name, norm in self._norms.items():
            asked |= {f"{name}-norm": norm.threshold, f"{name}-estimate": norm.estimate}
        return asked

    def _encode_broadcast(self, server_round: int) -> ArrayRecord | None:
        """The model as the clients get it; None: as it is."""
        if self._broadcast_spec == IDENTITY:
            return None
        rng = np.random.default_rng([self._seed, server_round])
        codecs = dict.fromkeys(self._model, self._broadcast_codec)
        return encode_arrays(codecs, self._model, rng)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The wrapped strategy's aggregate of the decoded replies; then the norms adapt."""
        said: list[dict[str, bool]] = []
        decoded = self._decoded(replies, said)
        arrays, metrics = self._training.aggregate_train(server_round, decoded)
        self._allocation.round_done()
        self.measurements = {}
        for name, norm in self._norms.items():
            did = {"zeroing": "zeroed", "clipping": "clipped"}[name]
            self.measurements[f"{name}_norm"] = norm.threshold
            self.measurements[f"{did}_count"] = sum(record[did] for record in said)
            norm.update(sum(record[f"{name}-below"] for record in said), len(said))
        return arrays, metrics

    def _decoded(
        self, replies: Iterable[Message], said: list[dict[str, bool]]
    ) -> Iterator[Message]:
        """The replies with decoded updates, one by one; refused ones become errors."""
        for reply in replies:
            if reply.has_error():
                yield reply
                continue
            try:
                record = only(reply.content, ConfigRecord) if self._norms else ConfigRecord()
                payload, update = self._decode(reply)
            except WireError as error:
                yield refusal(reply, error)
                continue
            failures = self._training.tally.failures
            yield reply
            if self._training.tally.failures > failures:
                continue  # what it says of its norm does not count either
            if update:
                self._allocation.observe(update, payload)
            if self._norms:
                said.append({key: bool(record.get(key)) for key in _SAID})

    def _decode(self, reply: Message) -> tuple[int, NamedArrays]:
        """Decode a reply in place.

        Returns:
            The bytes that its arrays came in; and the update, where there is something to decode or to check.
        """
        record = only(reply.content, ArrayRecord)
        payload = payload_bytes(record)
        if payload > self._most:  # before any of it is decoded
            raise WireError(f"its payload of {payload} bytes is over {self._most}")
        if not record or not (self._codecs or self._norms):
            return payload, {}  # a client without data sends no arrays
        update = decode_arrays(record, self._codecs, like=self._expected)
        self._check_norms(update)
        if self._codecs:
            [name] = records(reply.content, ArrayRecord)
            reply.content[name] = pack(update)
        return payload, update

    def _check_norms(self, update: NamedArrays) -> None:
        """Refuse an update that its client cannot have zeroed and clipped as it was told.

        A decoded update may be somewhat larger than what was encoded, and with error feedback it also
        holds what earlier rounds lost: the bound is wider there. One that is not finite was sent as it is: it is
        for the strategy to count.
        """
        feedback = any(codec.feedback for codec in self._codecs.values())
        slack = _SLACK["feedback" if feedback else "lossy" if self._codecs else "exact"]
        norms = {"zeroing": linf_norm, "clipping": l2_norm}
        for name, norm in self._norms.items():
            size, limit = norms[name](update), slack * norm.threshold
            if size > limit and is_finite(update):
                raise WireError(
                    f"the update was not subjected to {name}: its norm is {size:.3g}, over {limit:.3g}"
                )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's messages: evaluation is of the exact model."""
        return self._strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """The wrapped strategy's aggregate."""
        return self._strategy.aggregate_evaluate(server_round, replies)


def make_aggregator(
    settings: Settings, strategy: Strategy, trained: Sequence[str]
) -> CompressedAggregation:
    """What `--aggregator`, `--codec` and `--broadcast-codec` say, around a strategy.

    `mean` only encodes, `robust` zeroes and clips as `tff.learning.robust_aggregator` does, and
    `compression` adds a lossy codec, as `tff.learning.compression_aggregator` does.
    """
    norms = settings.aggregator != "mean"
    return CompressedAggregation(
        strategy,
        settings.codec,
        broadcast_codec=settings.broadcast_codec,
        zeroing=default_zeroing() if norms else None,
        clipping=default_clipping() if norms else None,
        trained=trained,
        seed=settings.seed,
    )
