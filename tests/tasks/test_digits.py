"""The sample digits: deterministic, learnable, skewed, with disjoint splits."""

import time

import numpy as np
import numpy.typing as npt
import pytest

from settings.errors import InputError
from tasks import digits
from tasks.data import Population, Split
from tasks.digits import open_digits


def flat(population: Population) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """All ink (n, 784) and labels (n,)."""
    clients = [population.examples(client_id) for client_id in population.client_ids]
    pixels = np.concatenate([client["pixels"] for client in clients])
    return 1 - pixels.reshape(-1, 784), np.concatenate([client["label"] for client in clients])


@pytest.mark.parametrize(("split", "fewest", "most"), [("train", 60, 120), ("test", 10, 20)])
def test_examples_look_like_tffs(split: Split, fewest: int, most: int) -> None:
    population = open_digits(split, writers=20)
    assert population.client_ids[7] == "synthetic_00007"
    assert len(population.client_ids) == 20
    for client_id in population.client_ids:
        examples = population.examples(client_id)
        pixels, label = examples["pixels"], examples["label"]
        assert list(examples) == ["label", "pixels"]
        assert pixels.dtype == np.float32
        assert label.dtype == np.int32
        assert pixels.shape == (len(label), 28, 28)
        assert fewest <= len(label) <= most
        assert set(label.tolist()) <= set(range(10))
        # Ink is 0.0 and paper 1.0: the corners are paper, and every picture has ink.
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert (pixels[:, [0, 0, 27, 27], [0, 27, 0, 27]] == 1).all()
        assert (pixels.min((1, 2)) < 0.1).all()


def test_a_writer_depends_on_the_seed_and_the_number_alone() -> None:
    few, many = open_digits("train", writers=3), open_digits("train", writers=30)
    many.examples("synthetic_00009")
    open_digits("test").examples("synthetic_00002")
    one, again = few.examples("synthetic_00002"), many.examples("synthetic_00002")
    assert all((one[name] == again[name]).all() for name in one)
    other = open_digits("train", writers=3, seed=1).examples("synthetic_00002")
    assert one["pixels"].shape != other["pixels"].shape or (one["pixels"] != other["pixels"]).any()


def test_the_same_pictures_on_every_machine() -> None:
    examples = open_digits("train").examples("synthetic_00000")
    levels = np.rint(examples["pixels"].astype(np.float64) * 255).astype(np.int64)
    assert np.abs(levels / 255 - examples["pixels"]).max() < 1e-7
    assert examples["label"][:12].tolist() == [1, 0, 0, 8, 9, 6, 7, 6, 9, 8, 0, 9]
    assert len(levels) == 111
    assert int((levels.ravel() * (np.arange(levels.size) % 9973)).sum()) == 90_577_898_227


def test_the_splits_share_no_source_image() -> None:
    train, test = digits._sources("train"), digits._sources("test")
    assert len(train[0]) + len(test[0]) == 1797
    assert not {image.tobytes() for image in train[0]} & {image.tobytes() for image in test[0]}
    for images, labels in (train, test):
        assert images.shape[1:] == (8, 8)
        assert (np.bincount(labels) > 15).all()


def test_writers_differ_in_hand_and_mix() -> None:
    population = open_digits("train")
    clients = [population.examples(client_id) for client_id in population.client_ids]
    ink = [float(1 - client["pixels"].mean()) for client in clients]
    share = [
        np.bincount(client["label"], minlength=10) / len(client["label"]) for client in clients
    ]
    assert np.std(ink) > 0.15 * np.mean(ink)
    assert np.std(share, axis=0).mean() > 0.04


def test_softmax_regression_learns_them() -> None:
    ink, label = flat(open_digits("train", writers=30))
    weights, wanted = np.zeros((784, 10), np.float32), np.eye(10, dtype=np.float32)[label]
    for _ in range(40):
        scores = ink @ weights
        chances = np.exp(scores - scores.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        weights -= 0.5 * ink.T @ (chances - wanted) / len(ink)
    ink, label = flat(open_digits("test", writers=30))
    assert ((ink @ weights).argmax(1) == label).mean() > 0.75


def test_a_writer_is_drawn_when_asked_and_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    population = open_digits("train", writers=100_000)
    population.examples("synthetic_00000")
    start = time.perf_counter()
    for number in range(10):
        population.examples(f"synthetic_{number:05}")
    # 10 ms a writer here; ten times that where many share the machine.
    assert time.perf_counter() - start < 1.0
    monkeypatch.setattr(digits, "_sources", None)
    open_digits("train")


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown split 'dev': choose from train, test"):
        open_digits("dev")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="writers must lie between 1 and 100,000, not at 0"):
        open_digits("train", writers=0)
    with pytest.raises(InputError, match="seed must not be negative: -1"):
        open_digits("train", seed=-1)
    with pytest.raises(InputError, match="unknown client id 'synthetic_00100'"):
        open_digits("train").examples("synthetic_00100")
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fedferry\[sample\]'"):
        open_digits("train")
