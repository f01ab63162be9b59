"""EMNIST without a download: scikit-learn's digits, written anew by synthetic writers."""

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from settings.errors import InputError, unknown
from tasks.data import SPLITS, Examples, Lazy, Split

Floats = npt.NDArray[np.float64]

_PIXELS = 28
_SOURCE_PIXELS = 8
# A side of an enlarged source image: fine enough for bilinear sampling to look smooth.
_FINE_PIXELS = 64
# Every so many source images one is for the test split.
_TEST_EVERY = 7
_FEWEST_AND_MOST = {"train": (60, 120), "test": (10, 20)}
# How even a writer's mix of digits is, as a Dirichlet concentration: about as even as in EMNIST.
_EVENNESS = 3.0
# A writer's hand: slant (width over height); height and width of the box that a digit fills, and
# its place down and right of the middle (pixels); the darkness that makes ink, bold where it is low.
_HAND_MEAN = np.array([0.15, 20.0, 22.0, 0.0, 0.0, 0.52])
_HAND_SPREAD = np.array([0.20, 1.5, 2.2, 0.8, 0.8, 0.08])
# No two digits of one writer are alike: each strays from the hand by this much.
_TREMOR = np.array([0.05, 0.7, 0.9, 0.5, 0.5, 0.02])


def open_digits(split: Split, writers: int = 100, seed: int = 0) -> Lazy:
    """Synthetic writers in TFF's EMNIST layout: `pixels` float32 (n, 28, 28), `label` int32 (n,).

    Pixels lie in [0, 1], ink 0.0 on a background of 1.0. A writer, `synthetic_00007`, has a hand
    (slant, size, place, stroke weight) and a mix of digits, both drawn from `seed` and the writer's
    number, and 60 to 120 training or 10 to 20 test examples. The splits share no source image.

    Raises:
        InputError: scikit-learn is not installed, or `writers` or `seed` is out of range.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if not 1 <= writers <= 100_000:
        raise InputError(f"writers must lie between 1 and 100,000, not at {writers}")
    if seed < 0:
        raise InputError(f"the seed must not be negative: {seed}")
    if find_spec("sklearn") is None:
        raise InputError("the sample digits need the extra: pip install 'fedferry[sample]'")
    numbers = {f"synthetic_{number:05}": number for number in range(writers)}
    return Lazy(numbers, lambda client_id: _examples(split, seed, numbers[client_id]))


def _examples(split: Split, seed: int, writer: int) -> Examples:
    rng = np.random.default_rng([seed, writer])
    hand = rng.normal(_HAND_MEAN, _HAND_SPREAD)
    mix = rng.dirichlet(np.full(10, _EVENNESS))
    # A stream for each split: reading one does not change the other.
    rng = np.random.default_rng([seed, writer, SPLITS.index(split)])
    fewest, most = _FEWEST_AND_MOST[split]
    label = rng.choice(10, size=rng.integers(fewest, most + 1), p=mix)
    images, labels = _sources(split)
    first, count = np.searchsorted(labels, label), np.bincount(labels)[label]
    hands = rng.normal(hand, _TREMOR, size=(len(label), len(hand)))
    pixels = _write(images[first + rng.integers(count)], hands)
    return {"label": label.astype(np.int32), "pixels": pixels}


@cache
def _sources(split: Split) -> tuple[Floats, npt.NDArray[Any]]:
    """A split's source images, (n, 8, 8) with ink 1.0 on 0.0, and labels (n,), ordered by label."""
    # Imported when the first digit is written: it takes a second.
    from sklearn.datasets import load_digits

    digits = load_digits()
    is_test = np.arange(len(digits.target)) % _TEST_EVERY == 0
    mine = np.flatnonzero(is_test if split == "test" else ~is_test)
    mine = mine[np.argsort(digits.target[mine], kind="stable")]
    return digits.images[mine] / 16, digits.target[mine]


def _write(images: Floats, hands: Floats) -> npt.NDArray[np.float32]:
    """Write source images (n, 8, 8), each by a hand (n, 6), as pictures (n, 28, 28).

    All in float64, and rounded to 256 levels as TFF's files are: machines that add in another order
    write the same pictures.
    """
    slant, height, width, down, right, darkness = hands.T[:, :, None, None]
    place = np.arange(_PIXELS) - (_PIXELS - 1) / 2
    y = place[:, None] - down
    x = place - right + slant * y
    # In the box of height and width lie the source's pixels; a pixel of margin surrounds them.
    grid = (_FINE_PIXELS - 1) / (_SOURCE_PIXELS + 2)
    fine_y = (y / height * _SOURCE_PIXELS + (_SOURCE_PIXELS + 2) / 2) * grid
    fine_x = (x / width * _SOURCE_PIXELS + (_SOURCE_PIXELS + 2) / 2) * grid
    grey = _sample(_enlarged(images), fine_y, fine_x)
    # A pen leaves ink or none, with an edge about a pixel wide.
    ink = np.clip((grey - darkness) / 0.3 + 0.5, 0, 1)
    return np.asarray(1 - np.round(ink * 255) / 255, dtype=np.float32)


def _enlarged(images: Floats) -> Floats:
    """Images (n, 8, 8) as (n, 64, 64), by cubic interpolation, with a source pixel of margin."""
    sources = np.arange(_SOURCE_PIXELS)
    positions = np.linspace(-1.5, _SOURCE_PIXELS + 0.5, _FINE_PIXELS)
    away = np.abs(positions[:, None] - sources)
    # Catmull and Rom's kernel: through the source's values, smooth in between.
    near, far = (1.5 * away - 2.5) * away**2 + 1, ((2.5 - 0.5 * away) * away - 4) * away + 2
    weights = np.where(away < 1, near, np.where(away < 2, far, 0))
    return np.asarray(weights @ images @ weights.T)


def _sample(images: Floats, y: Floats, x: Floats) -> Floats:
    """Images (n, 64, 64) at points y, x (n, 28, 28), bilinearly; beyond an edge as at the edge."""
    y, x = (np.clip(at, 0, _FINE_PIXELS - 1.001) for at in np.broadcast_arrays(y, x))
    top, left = y.astype(np.intp), x.astype(np.intp)
    y, x = y - top, x - left
    image = np.arange(len(images))[:, None, None]
    above = images[image, top, left] * (1 - x) + images[image, top, left + 1] * x
    below = images[image, top + 1, left] * (1 - x) + images[image, top + 1, left + 1] * x
    return np.asarray(above * (1 - y) + below * y)
