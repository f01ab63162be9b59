"""Tensors and JSON in one safetensors file, written atomically: no pickle, nothing half-written."""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from settings.errors import InputError
from weights.named import Array, NamedArrays, fingerprint

_HEADER = "fedferry"
"""The only entry of a file's metadata, the checksum and the header: safetensors writes several in any order."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")


def json_text(content: Mapping[str, Any], **lists: Iterable[str]) -> str:
    """An object as JSON, with lists in it whose items are JSON already: an item a line.

    What grows from round to round is not made anew in every one.
    """
    parts = [json.dumps(content)[1:-1]]
    for name, items in lists.items():
        listed = ",\n".join(items)
        parts.append(f"{json.dumps(name)}: [\n{listed}\n]")
    return "{" + ", ".join(filter(None, parts)) + "}"


def write_checkpoint(path: Path, arrays: Mapping[str, Array], header: str) -> None:
    """Write arrays and a header, an object in JSON: `path` holds either the old file or the whole new one.

    Equal content makes equal files, byte for byte.
    """
    # Reshaped because numpy makes a vector of a scalar.
    contiguous = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()
    }
    metadata = {_HEADER: f"{_checksum(contiguous, header)} {header}"}
    with replacing(path) as file:
        save_file(contiguous, file, metadata=metadata)


def read_checkpoint(path: Path) -> tuple[NamedArrays, dict[str, Any]]:
    """Arrays and header of a file that `write_checkpoint` wrote.

    Raises:
        InputError: No such file, a damaged one, or a safetensors file of somebody else's.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            said = (file.metadata() or {}).get(_HEADER)
            if said is None:
                raise InputError(
                    f"{path} was not written by fedferry: its header says nothing of it"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged: {error}") from None
    checksum, _, header = said.partition(" ")
    if checksum != _checksum(arrays, header):
        raise InputError(f"{path} is damaged: its checksum does not fit its content")
    return arrays, json.loads(header)


def _checksum(arrays: Mapping[str, Array], header: str) -> str:
    """SHA-256 over everything that a file holds."""
    return hashlib.sha256(f"{fingerprint(arrays)} {header}".encode()).hexdigest()


def model_arrays(arrays: Mapping[str, Array]) -> NamedArrays:
    """The model's arrays of a saved model, or of a run's checkpoint, where `weights/` precedes their names."""
    prefix = "weights/"
    inside = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return inside or dict(arrays)


def check_place(path: Path) -> None:
    """Raise InputError if `path` cannot be written: better said before the work than after. Touches nothing."""
    _check_replaceable(path)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{path}: cannot be written: {nearest} is not a folder that takes files")


def _check_replaceable(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path}: cannot be written: it is a folder")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be written: it is a device, not a file")


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A file beside `path` to write, which then replaces `path` in one step; deleted on errors.

    Args:
        path: What is replaced; of a link, what it points to.
        durable: Wait until the disk has it, so that the machine's end does not undo it.

    Raises:
        InputError: The folder or the disk does not take it.
    """
    _check_replaceable(path)
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            with suppress(OSError):  # not every file system can
                _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clear_temporaries(folder: Path) -> None:
    """Delete what `replacing` left anywhere in a folder when its process was killed."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
