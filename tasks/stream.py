"""From a client's examples to batches, in the order of TFF's tutorials: repeat, shuffle, batch, take."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class Prepared:
    """One client's examples, ready for the model; the leading dimension of each is examples.

    Attributes:
        inputs: Whatever the model takes.
        targets: Whatever the loss takes.
        mask: Boolean, the targets' shape: False where a target is padding and must not count.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Batch:
    """A batch: `Prepared` in little."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor | None = None

    @property
    def num_examples(self) -> int:
        """Examples with at least one target that counts."""
        if self.mask is None:
            return len(self.inputs)
        return int(self.mask.unsqueeze(-1).flatten(1).any(dim=1).sum())

    @property
    def num_targets(self) -> int:
        """Targets that count: labels for images, characters for text."""
        return self.targets.numel() if self.mask is None else int(self.mask.sum())


class Chosen(NamedTuple):
    """Which of a client's examples are in its batches.

    Attributes:
        rows: Batch after batch.
        size: Examples in a batch; the last one may have fewer.
    """

    rows: npt.NDArray[np.int64]
    size: int

    @property
    def num_batches(self) -> int:
        """How many batches these are."""
        return -(-len(self.rows) // self.size) if self.size else 0

    def batches(self) -> list[npt.NDArray[np.int64]]:
        """The rows of each batch."""
        size = self.size
        return [self.rows[index * size : (index + 1) * size] for index in range(self.num_batches)]


@dataclass(frozen=True)
class Stream:
    """How a client's examples become batches.

    Attributes:
        batch_size: Examples in a batch.
        local_epochs: Passes; they form one stream, so that a batch may span two of them.
        shuffle_buffer: Elements in the shuffle buffer; 0 keeps the order.
        drop_remainder: Whether a last short batch is dropped.
        max_batches: Batches at most; 0 for all.
    """

    batch_size: int
    local_epochs: int = 1
    shuffle_buffer: int = 0
    drop_remainder: bool = False
    max_batches: int = 0

    def batches(self, prepared: Prepared, rng: np.random.Generator) -> Iterator[Batch]:
        """The batches; drawing from `rng` only when shuffling. `operator.length_hint` says how many are left."""
        return _Batches(self, prepared, self.chosen(len(prepared), rng))

    def chosen(self, examples: int, rng: np.random.Generator) -> Chosen:
        """Which of a client's examples are in each batch."""
        order = np.tile(np.arange(examples), self.local_epochs)
        if self.shuffle_buffer:
            order = shuffle(order, self.shuffle_buffer, rng)
        if self.drop_remainder:
            order = order[: len(order) // self.batch_size * self.batch_size]
        if self.max_batches:
            order = order[: self.max_batches * self.batch_size]
        return Chosen(order, min(self.batch_size, len(order)))

    def _gather(self, prepared: Prepared, chosen: Tensor) -> Batch:
        inputs, targets = prepared.inputs[chosen], prepared.targets[chosen]
        if prepared.mask is None:
            return Batch(inputs, targets)
        # Where there is a mask a short batch is filled up with masked rows: stateful layers need one batch size.
        short = self.batch_size - len(chosen)
        return Batch(*(_fill(part, short) for part in (inputs, targets, prepared.mask[chosen])))


class _Batches(Iterator[Batch]):
    """A client's batches, each made when its turn comes."""

    def __init__(self, stream: Stream, prepared: Prepared, chosen: Chosen) -> None:
        self._stream, self._prepared, self._left = stream, prepared, iter(chosen.batches())

    def __next__(self) -> Batch:
        return self._stream._gather(self._prepared, torch.from_numpy(next(self._left)))

    def __length_hint__(self) -> int:
        return length_hint(self._left)


def _fill(part: Tensor, rows: int) -> Tensor:
    return torch.cat([part, part.new_zeros(rows, *part.shape[1:])]) if rows else part


def shuffle(
    order: npt.NDArray[np.int64], buffer_size: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """`tf.data.Dataset.shuffle`: emit a random element of a buffer that the stream keeps refilling."""
    if buffer_size >= len(order):
        return rng.permutation(order)
    drawn = rng.integers(buffer_size, size=len(order) - buffer_size)
    # A slot gives what was put into it when it was drawn before, or else what it held at the start.
    turns = np.argsort(drawn, kind="stable")
    source = drawn[turns]
    again = source[1:] == source[:-1]
    source[1:] = np.where(again, buffer_size + turns[:-1], source[1:])
    shuffled = np.empty_like(order)
    shuffled[turns] = order[source]
    buffer = order[:buffer_size].copy()
    buffer[drawn] = order[buffer_size:]  # where a slot was drawn twice, the later one stays
    shuffled[len(drawn) :] = rng.permutation(buffer)
    return shuffled


def client_seed(seed: int, server_round: int, client_id: str) -> int:
    """A 63-bit seed that depends on nothing but the run's seed, the round and the client."""
    digest = hashlib.sha256(f"{seed}/{server_round}/{client_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
