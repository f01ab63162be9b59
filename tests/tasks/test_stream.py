"""From examples to batches: repeat, shuffle, batch, take, as tf.data does it."""

import numpy as np
import numpy.typing as npt
import torch

from tasks.stream import Batch, Prepared, Stream, client_seed, shuffle


def numbered(count: int, mask: bool = False) -> Prepared:
    """Examples that carry their own number; where masked, example i has i + 1 counted targets of 3."""
    inputs = torch.arange(count, dtype=torch.float32)[:, None]
    targets = torch.arange(count)[:, None].repeat(1, 3)
    counted = torch.arange(3)[None] <= torch.arange(count)[:, None]
    return Prepared(inputs, targets, counted if mask else None)


def numbers(stream: Stream, count: int, seed: int = 0) -> list[list[int]]:
    batches = stream.batches(numbered(count), np.random.default_rng(seed))
    result = []
    for batch in batches:
        assert (batch.inputs.shape[1:], batch.targets.shape[1:]) == ((1,), (3,))
        assert torch.equal(batch.inputs[:, 0].long(), batch.targets[:, 0])
        result.append(batch.targets[:, 0].tolist())
    return result


def test_epochs_are_one_stream() -> None:
    """`dataset.repeat(3).batch(4)`: a batch spans two epochs, only the very last is short."""
    assert numbers(Stream(4, local_epochs=3), 5) == [
        [0, 1, 2, 3],
        [4, 0, 1, 2],
        [3, 4, 0, 1],
        [2, 3, 4],
    ]


def test_remainder_and_limit() -> None:
    assert numbers(Stream(4, drop_remainder=True), 6) == [[0, 1, 2, 3]]
    assert numbers(Stream(4, drop_remainder=True), 3) == []
    assert numbers(Stream(4), 3) == [[0, 1, 2]]
    assert numbers(Stream(2, max_batches=2), 5) == [[0, 1], [2, 3]]
    assert numbers(Stream(2, max_batches=9), 5) == [[0, 1], [2, 3], [4]]
    assert numbers(Stream(4, local_epochs=2, drop_remainder=True, max_batches=5), 5) == [
        [0, 1, 2, 3],
        [4, 0, 1, 2],
    ]
    assert numbers(Stream(4, shuffle_buffer=10), 0) == []


def test_order_is_kept_without_touching_the_random_numbers() -> None:
    rng = np.random.default_rng(3)
    list(Stream(2).batches(numbered(9), rng))
    assert rng.integers(1000) == np.random.default_rng(3).integers(1000)


def test_shuffling_mixes_epochs_and_keeps_every_example() -> None:
    stream = Stream(4, local_epochs=3, shuffle_buffer=100)
    order = [number for batch in numbers(stream, 10, seed=1) for number in batch]
    assert sorted(order) == sorted(list(range(10)) * 3)
    assert sorted(order[:10]) != list(range(10))
    assert numbers(stream, 10, seed=1) == numbers(stream, 10, seed=1)
    assert numbers(stream, 10, seed=1) != numbers(stream, 10, seed=2)


def shuffled(count: int, buffer: int, seed: int) -> npt.NDArray[np.int64]:
    return shuffle(np.arange(count), buffer, np.random.default_rng(seed))


def test_shuffle_buffer_holds_elements_back() -> None:
    """What is emitted at a position came from the first `buffer` elements beyond it, no further."""
    earliest = 0
    for seed in range(50):
        for buffer in (1, 2, 10, 99, 100, 1000):
            order = shuffled(100, buffer, seed)
            assert sorted(order) == list(range(100))
            ahead = int((order - np.arange(100)).max())
            assert ahead <= buffer - 1
            if buffer == 10:
                earliest = max(earliest, ahead)
    assert earliest == 9
    assert shuffled(100, 1, 0).tolist() == list(range(100))


def test_shuffle_is_uniform_where_the_buffer_holds_everything() -> None:
    orders = {tuple(shuffled(3, buffer, seed)) for seed in range(200) for buffer in (3, 7)}
    assert len(orders) == 6


def test_shuffling_leaves_the_order_that_it_is_given() -> None:
    order = np.arange(20)
    shuffle(order, 4, np.random.default_rng(0))
    assert order.tolist() == list(range(20))


def test_shuffle_buffer_of_two_by_hand() -> None:
    """Every order that a buffer of 2 can emit from three elements, and no other."""
    orders = {tuple(shuffled(3, 2, seed).tolist()) for seed in range(200)}
    assert orders == {(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0)}


def test_a_short_masked_batch_is_filled_up() -> None:
    rng = np.random.default_rng(0)
    whole, short = Stream(4).batches(numbered(5, mask=True), rng)
    assert whole.num_examples == 4
    assert whole.num_targets == 1 + 2 + 3 + 3
    assert short.inputs.shape == (4, 1)
    assert short.targets.shape == (4, 3)
    assert short.mask is not None
    assert short.mask.tolist() == [[True] * 3] + [[False] * 3] * 3
    assert (short.num_examples, short.num_targets) == (1, 3)


def test_counts_of_a_batch() -> None:
    labels = Batch(torch.zeros(5, 784), torch.zeros(5))
    assert (labels.num_examples, labels.num_targets) == (5, 5)
    text = Batch(torch.zeros(2, 7), torch.zeros(2, 7))
    assert (text.num_examples, text.num_targets) == (2, 14)
    # One label an example, some of them not counted.
    masked = Batch(torch.zeros(3, 784), torch.zeros(3), torch.tensor([True, False, True]))
    assert (masked.num_examples, masked.num_targets) == (2, 2)
    assert type(masked.num_examples) is type(masked.num_targets) is int


def test_client_seed() -> None:
    seeds = {
        client_seed(seed, server_round, client)
        for seed in (0, 1, 11)
        for server_round in (0, 1, 11)
        for client in ("a", "1/a", "b")
    }
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Recorded: a resumed run of a later version must draw what this one drew.
    assert client_seed(0, 1, "a") == 3562115698689350468
