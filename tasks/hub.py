"""Populations from the Hugging Face Hub through Flower Datasets, one client a natural id: `hf:NAME`."""

import os
from functools import cache
from typing import Any

import numpy as np

from settings.errors import InputError
from tasks.data import HUB, Examples, Lazy, Split

# The column that says whose a row is, among the columns that a data set of this kind has.
_KINDS = {
    "writer_id": ("image", "writer_id", "character"),
    "character_id": ("x", "y", "character_id"),
}


def open_hub(name: str, split: Split) -> Lazy:
    """Open one split of a data set with the columns of `flwrlabs/femnist` or of `flwrlabs/shakespeare`.

    These have one split; each client's last tenth of it is the test split here, and the rest training.

    - `image`, `writer_id`, `character` become `pixels` float32 (n, 28, 28), ink 0.0 on 1.0, and `label`
      int32 (n,): 0-9 are digits, then come A-Z and a-z, as in TFF's EMNIST.
    - `x` (80 characters), `y` (the next one), `character_id` become `snippets`: the text that these
      overlapping windows were cut from, a new snippet wherever a window does not go on from the last.

    Args:
        name: On the Hub, or a folder with such data.
        split: Which part of each client's data.

    Raises:
        InputError: The extra `hf` is not installed, no such data set, no network, or other columns.
    """
    if not name:
        raise InputError(f"{HUB} lacks a name: {HUB}flwrlabs/femnist")
    partitioner, column = _partitioner(name)
    read = _text if column == "character_id" else _images
    numbers = {str(key): number for number, key in partitioner.partition_id_to_natural_id.items()}

    def examples(client_id: str) -> Examples:
        rows = partitioner.load_partition(numbers[client_id])
        return read(rows, split)

    return Lazy(numbers, examples)


@cache
def _partitioner(name: str) -> tuple[Any, str]:
    """The data set, partitioned by its natural ids, and the column of these."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        from flwr_datasets import FederatedDataset
        from flwr_datasets.partitioner import NaturalIdPartitioner
    except ImportError:
        raise InputError(f"{HUB}{name} needs the extra: pip install 'fedferry[hf]'") from None
    try:
        # Unshuffled: windows of text follow each other.
        rows = FederatedDataset(dataset=name, partitioners={}, shuffle=False).load_split("train")
    except Exception as error:  # Whatever the Hub's client, its cache and its readers raise.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{HUB}{name} cannot be loaded: {reason}") from error
    for column, needed in _KINDS.items():
        if set(needed) <= set(rows.column_names):
            partitioner = NaturalIdPartitioner(partition_by=column)
            partitioner.dataset = rows
            # Reading one partition makes its index.
            partitioner.load_partition(0)
            return partitioner, column
    wanted = "; or ".join(", ".join(needed) for needed in _KINDS.values())
    raise InputError(
        f"{HUB}{name} has the columns {', '.join(rows.column_names)}; known are: {wanted}"
    )


def _cut(number: int, split: Split) -> slice:
    """A client's rows of a split: the last tenth, rounded up, is for tests."""
    train = number * 9 // 10
    return slice(train) if split == "train" else slice(train, None)


def _images(rows: Any, split: Split) -> Examples:
    mine = rows[_cut(len(rows), split)]
    pixels = np.array(
        [np.asarray(image.convert("L")) for image in mine["image"]], dtype=np.float32
    ).reshape(-1, 28, 28)
    pixels /= 255
    # Most of a picture is paper, which TFF has at 1.0.
    if len(pixels) and np.median(pixels) < 0.5:
        pixels = 1 - pixels
    return {"label": np.array(mine["character"], dtype=np.int32), "pixels": pixels}


def _text(rows: Any, split: Split) -> Examples:
    part = _cut(len(rows), split)
    windows, following = rows["x"], rows["y"]
    snippets: list[str] = []
    expected = None
    for window, character in zip(windows[part], following[part], strict=True):
        if window == expected:
            snippets[-1] += character
        elif snippets or split == "train":
            snippets.append(window + character)
        else:
            # The first window of the test split is training text.
            snippets.append(character)
        expected = (window + character)[-len(window) :]
    encoded = [snippet.encode() for snippet in snippets]
    return {"snippets": np.array(encoded, dtype=object)}
