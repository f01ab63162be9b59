"""Tensors and JSON in one safetensors file: no pickle, and nothing half-written."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from settings.errors import InputError
from weights.files import check_file, replacing
from weights.named import Array, NamedArrays, fingerprint

_HEADER = "fedferry"
"""The only entry of a file's metadata, the checksum and the header: safetensors writes several in any order."""

WEIGHTS = "weights/"
"""Precedes the names of the model's arrays in a run's checkpoint, which has other arrays too."""


def write_checkpoint(
    path: Path, arrays: Mapping[str, Array], header: Mapping[str, Any], *, durable: bool = True
) -> None:
    """Write arrays and a header, which becomes JSON: `path` holds either the old file or the whole new one.

    Equal content makes equal files, byte for byte. `durable` as for `replacing`.
    """
    # Reshaped because numpy makes a vector of a scalar.
    contiguous = {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()
    }
    said = json.dumps(header)
    metadata = {_HEADER: f"{_checksum(contiguous, said)} {said}"}
    with replacing(path, durable=durable) as file:
        file.touch()
        mode = file.stat().st_mode
        try:
            save_file(contiguous, file, metadata=metadata)
        except SafetensorError as error:  # the system's, in safetensors' words
            raise OSError(str(error)) from error
        with suppress(OSError):  # not every file system can
            # safetensors makes a file of its own, which nobody else may read.
            file.chmod(mode)


def read_checkpoint(path: Path) -> tuple[NamedArrays, dict[str, Any]]:
    """Arrays and header of a file that `write_checkpoint` wrote.

    Raises:
        InputError: No such file, a damaged one, or a safetensors file of somebody else's.
    """
    check_file(path)
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


_ROUND = re.compile(r"round-\d+\.safetensors")


def round_path(folder: Path, server_round: int) -> Path:
    """Where what is kept of a round lies: names in the order of the rounds."""
    return folder / f"round-{server_round:06d}.safetensors"


def round_paths(folder: Path) -> list[Path]:
    """All that is kept of rounds in a folder, in their order."""
    return sorted(path for path in folder.glob("round-*") if _ROUND.fullmatch(path.name))


def round_of(path: Path) -> int:
    """The round that `round_path` gave a name to."""
    return int(path.stem.removeprefix("round-"))


def _checksum(arrays: Mapping[str, Array], header: str) -> str:
    """SHA-256 over everything that a file holds."""
    return hashlib.sha256(f"{fingerprint(arrays)} {header}".encode()).hexdigest()


def model_arrays(arrays: Mapping[str, Array]) -> NamedArrays:
    """The model's arrays of a saved model, or of a run's checkpoint."""
    inside = {
        name.removeprefix(WEIGHTS): array
        for name, array in arrays.items()
        if name.startswith(WEIGHTS)
    }
    return inside or dict(arrays)
