"""Which codec each tensor gets in a round: the same for all, or a step that follows a byte budget."""

import math
from collections.abc import Mapping

import numpy as np

from settings.errors import InputError, unknown
from settings.spec import construct, parse_spec
from weights.codecs.catalogue import CODECS, make_codec
from weights.codecs.codec import Codec
from weights.codecs.step import RESOLUTION
from weights.named import Array, is_finite, max_abs

IDENTITY = "identity"
"""The codec that does nothing: with it nothing is encoded, and nothing copied, at all."""


class Allocation:
    """Gives each tensor its codec, round by round: one and the same, unless a subclass knows better.

    Args:
        spec: The codec's.

    Raises:
        InputError: A spec that cannot be read.
    """

    def __init__(self, spec: str) -> None:
        make_codec(spec)
        self._spec = spec

    def specs(self, like: Mapping[str, Array]) -> dict[str, str]:
        """Codec spec by tensor name, for the coming round; a name left out travels as it is."""
        return dict.fromkeys(like, self._spec) if self._spec != IDENTITY else {}

    def observe(self, update: Mapping[str, Array], payload: int) -> None:
        """Learn from one decoded update, which may not be finite, and from the bytes that it came in."""

    def round_done(self) -> None:
        """Adapt, after the last `observe` of a round."""

    def state(self) -> dict[str, float]:
        """What has adapted so far, for a checkpoint."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint's `state`."""


class Adaptive(Allocation):
    """`adaptive:budget=BYTES`: one absolute step for all tensors and clients, steered to a byte budget.

    Of all ways to share out bits, equal distortion everywhere loses least in total: reverse
    water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3). A uniform quantiser's
    distortion depends on its step alone, so equal distortion is one step for all: tensors and clients
    with small updates get few bits, and each round's share of bits follows where the update is. The step
    itself follows what earlier rounds cost: step <- step (bytes / budget)^0.6. The exponent was chosen by
    trial: bytes fall about as step^-0.5 on the CNN at two bits a parameter, but fell as step^-1.7 on the
    softmax regression at one, where 1.5 swung and 0.6 settled.

    Args:
        budget: Bytes of payload that a client sends in a round, on average over clients.
        rounding: "nearest" or "stochastic".
        threshold: Tensors with more elements than this are encoded.
    """

    _GAIN = 0.6
    _LARGEST_CHANGE = 4.0

    def __init__(
        self, budget: int, rounding: str = "nearest", threshold: int = Codec.threshold
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget must be at least 1 byte, but is {budget}")
        self._options = f"rounding={rounding},threshold={threshold}"
        super().__init__(f"step:step=1,{self._options}")
        self._budget = budget
        self._threshold = threshold
        self._step = 0.0
        self._payloads: list[int] = []
        self._finest: list[float] = []
        self._steps: list[tuple[int, float]] = []

    def specs(self, like: Mapping[str, Array]) -> dict[str, str]:
        """The common step; in the first round, equal bits per parameter instead."""
        if self._step:
            return dict.fromkeys(like, f"step:step={self._step!r},{self._options}")
        large = {n: a.size for n, a in like.items() if a.size > self._threshold}
        raw = sum(a.nbytes for n, a in like.items() if n not in large)
        bits = 8 * (self._budget - raw) / max(sum(large.values()), 1)
        if bits <= 0:
            raise InputError(
                f"adaptive:budget={self._budget} leaves nothing for the large tensors: the small ones, "
                f"which are not encoded, take {raw} bytes"
            )
        return dict.fromkeys(like, f"step:bits={min(bits, 8.0)!r},{self._options}")

    def observe(self, update: Mapping[str, Array], payload: int) -> None:
        """Note the bytes and the finest steps that are of use; in the first round, those that equal bits led to."""
        if not is_finite(update):
            return
        self._payloads.append(payload)
        for array in update.values():
            largest = max_abs(array)
            if array.size <= self._threshold or not largest:
                continue
            self._finest.append(largest * RESOLUTION)
            if not self._step:
                # Decoded values are whole multiples of the step, so the smallest one is the step.
                self._steps.append((array.size, float(np.abs(array[array != 0]).min())))

    def round_done(self) -> None:
        """Set the next round's step."""
        if not self._payloads:
            return
        if not self._step and self._steps:
            total = sum(size for size, _ in self._steps)
            self._step = math.exp(sum(n * math.log(step) for n, step in self._steps) / total)
        over = float(np.mean(self._payloads)) / self._budget
        change = min(max(over**self._GAIN, 1 / self._LARGEST_CHANGE), self._LARGEST_CHANGE)
        # A budget that cannot be spent would take the step to zero.
        self._step = max(self._step * change, min(self._finest, default=0.0))
        self._payloads.clear()
        self._finest.clear()
        self._steps.clear()

    def state(self) -> dict[str, float]:
        """The step."""
        return {"step": self._step}

    def load_state(self, state: Mapping[str, float]) -> None:
        """The step of a checkpoint."""
        self._step = state["step"]


def make_allocation(spec: str) -> Allocation:
    """What `--codec` says: `adaptive:budget=BYTES`, or a codec for every tensor and round."""
    name = parse_spec(spec).name
    if name == "adaptive":
        allocation: Allocation = construct(spec, {name: Adaptive}, "codec")
        return allocation
    if name not in CODECS and ":" not in name:
        raise unknown("codec", name, [*CODECS, "adaptive"])
    return Allocation(spec)
