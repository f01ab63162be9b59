"""Clients' data in this process: populations opened once, the last clients' examples kept prepared."""

import functools
from collections import OrderedDict
from dataclasses import dataclass

import torch

from tasks.catalogue import load_task
from tasks.data import Population, Split
from tasks.stream import Chosen, Prepared

MOST_BYTES = 64 * 2**20
"""Of prepared examples that are kept: a round of small clients need not read them again."""


@dataclass(frozen=True)
class Client:
    """A client's examples, and which of them are in its batches."""

    prepared: Prepared
    chosen: Chosen


class _Kept:
    """Prepared examples by client, those used last, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._items: OrderedDict[object, Prepared] = OrderedDict()
        self._left = most_bytes

    def get(self, key: object) -> Prepared | None:
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)

    def add(self, key: object, examples: Prepared) -> None:
        self._items[key] = examples
        self._left -= size_of(examples)
        while self._left < 0:
            _, oldest = self._items.popitem(last=False)
            self._left += size_of(oldest)


_kept = _Kept(MOST_BYTES)


@functools.lru_cache(maxsize=8)
def population(task: str, data: str, split: Split) -> Population:
    """A task's population; a SuperNode opens it for every message, a simulation once."""
    return load_task(task).population(data, split)


def prepared(task: str, data: str, split: Split, client_id: str, seed: int) -> Prepared:
    """One client's examples, ready for the model; torch is seeded, for a task that draws while it prepares."""
    key = (task, data, split, client_id)
    # Not torch.manual_seed: without a GPU in use it formats a stack trace for each kind, a millisecond or two,
    # and keeps it for ever.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if (examples := _kept.get(key)) is not None:
        return examples
    before = torch.get_rng_state()
    raw = population(task, data, split).examples(client_id)
    examples = load_task(task).prepared(client_id, raw)
    # What was drawn at random is drawn anew in every round.
    if torch.equal(before, torch.get_rng_state()):
        _kept.add(key, examples)
    return examples


def size_of(examples: Prepared) -> int:
    """Bytes of one client's examples."""
    parts = (examples.inputs, examples.targets, examples.mask)
    return sum(part.nbytes for part in parts if part is not None)
