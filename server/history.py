"""A run's rounds on disk, a line of JSON each: the thousandth costs no more to write than the first."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from settings.errors import InputError
from weights.files import Growing

Mark = Mapping[str, Any]
"""How much of the file belongs to a checkpoint, which keeps it: `bytes`, and their `sha256`."""


class History:
    """The file, which grows by a line a round.

    Args:
        folder: Of the checkpoints.
        size: Bytes that a resumed run keeps: what lies behind them is of rounds that are done again.
    """

    def __init__(self, folder: Path, size: int = 0) -> None:
        path = _file(folder)
        self._sum = hashlib.sha256(path.read_bytes()[:size] if size else b"")
        self._size = size
        self._file = Growing(path, size)

    def add(self, line: str) -> None:
        """Add a round, in JSON; once more, where it has changed since."""
        data = f"{line}\n".encode()
        self._file.write(data)
        self._sum.update(data)
        self._size += len(data)

    @property
    def mark(self) -> Mark:
        """What a checkpoint keeps, to find all that has been added so far."""
        return {"bytes": self._size, "sha256": self._sum.hexdigest()}

    def flush(self, *, durable: bool = False) -> None:
        """Write what has been added; arguments and errors are those of `Growing.flush`."""
        self._file.flush(durable=durable)


def read_history(folder: Path, mark: Mark | None) -> list[dict[str, Any]]:
    """The rounds that belong to a checkpoint, in their order.

    Raises:
        InputError: The file is not there, or damaged, or of an earlier fedferry, which kept the rounds elsewhere.
    """
    path = _file(folder)
    if mark is None:
        raise InputError(f"it was written by a fedferry that had no {path.name} yet")
    try:
        data = path.read_bytes()[: mark["bytes"]]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if hashlib.sha256(data).hexdigest() != mark["sha256"]:
        raise InputError(f"{path} is damaged: its checksum does not fit its content")
    rounds = {item["round"]: item for item in map(json.loads, data.splitlines())}
    return [*rounds.values()]


def _file(folder: Path) -> Path:
    return folder / "rounds.jsonl"
