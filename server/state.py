"""Checkpoints of a run: everything needed to go on as if it had never stopped."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from logging import WARNING
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from flwr.supercore import log
from torch.optim import Optimizer

from server.history import Mark, read_history
from settings.errors import InputError
from settings.schema import Settings
from weights.checkpoint import (
    WEIGHTS,
    model_arrays,
    read_checkpoint,
    round_path,
    round_paths,
    write_checkpoint,
)
from weights.named import NamedArrays

_STATES = "states"
"""Folder of the nodes' states, inside the checkpoints' folder."""
SaveStates = Callable[[Path, int, int], None]
"""Writes nodes' states: into which folder, as those after which round; drops what no round from the third on needs."""

_FREE = {"rounds", "logdir", "save", "json", "resume", "min-available-nodes", "workers"} | {
    f"eval{suffix}" for suffix in ("uation", "-every", "-cohort", "-batches")
}
"""Settings that a resumed run may change: they do not touch the training of earlier rounds."""


@runtime_checkable
class KeepsStates(Protocol):
    """A grid whose nodes' states live and die with this process: they belong to the checkpoint."""

    def states_saver(self) -> SaveStates:
        """What writes all that nodes remember now, whatever they do meanwhile."""

    def load_states(self, folder: Path, server_round: int) -> None:
        """Let nodes remember what they did after that round, and forget what came later."""


@contextmanager
def exclusive(logdir: Path) -> Iterator[None]:
    """Hold a run's folder: two runs that write checkpoints into one would mix them.

    The lock is the operating system's, so that it ends with the process, however that ends.

    Raises:
        InputError: Another process holds it, or it cannot be made.
    """
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(logdir, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{logdir}: cannot be written: {error}") from None
    try:
        with suppress(OSError):  # a file system without locks: then nobody is kept out
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{logdir} is in use: another run, which has not ended, writes into it"
                ) from None
        yield
    finally:
        os.close(handle)


class Checkpoint:
    """A run as it is after a round: copies, so that it can go on while they are written.

    The random state needs no entry: cohorts, shuffles and dropout are drawn from (seed, round, client).

    Args:
        server_round: The round that is finished.
        weights: The global model.
        optimizer: The server optimizer.
        header: What is kept with it as JSON: the settings under "settings", Flower's id of the run under "run".
        nodes: Whose nodes' states belong to the checkpoint.
    """

    def __init__(
        self,
        server_round: int,
        weights: NamedArrays,
        optimizer: Optimizer,
        header: Mapping[str, Any],
        nodes: KeepsStates | None = None,
    ) -> None:
        arrays, scalars = training_state(weights, optimizer)
        self._arrays = {name: array.copy() for name, array in arrays.items()}
        self._header = {**header, "round": server_round, "optimizer": scalars}
        self._round = server_round
        self._save_states = nodes.states_saver() if nodes is not None else None

    @property
    def num_bytes(self) -> int:
        """Of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())

    def write(self, folder: Path, mark: Mark, *, oldest: int = 0, durable: bool = True) -> Path:
        """Write it.

        Args:
            folder: Of all checkpoints.
            mark: Of the history, which has been written already.
            oldest: Nodes' states that no round from this one on needs are dropped.
            durable: Wait until the disk has it.

        Raises:
            InputError: The disk does not take it.
        """
        # Before the checkpoint itself: states of a round that has none are never read.
        if self._save_states is not None:
            self._save_states(folder / _STATES, self._round, oldest)
        path = round_path(folder, self._round)
        content = {**self._header, "history": mark}
        write_checkpoint(path, self._arrays, content, durable=durable)
        return path


def load_state(
    folder: Path, settings: Settings, optimizer: Optimizer, nodes: KeepsStates | None = None
) -> tuple[NamedArrays, dict[str, Any]]:
    """Read the last good checkpoint, restore the optimizer and the nodes, return weights and header.

    The header has the history under "rounds". A checkpoint that is damaged, or whose history or nodes' states are,
    is skipped with a warning for the one before.

    Raises:
        InputError: No good checkpoint, or one of a run with other settings.
    """
    for path, arrays, header in _readable(folder):
        _check_settings(header["settings"], settings.to_config(), path)
        try:
            header["rounds"] = read_history(folder, header.get("history"))
            if nodes is not None:
                nodes.load_states(folder / _STATES, header["round"])
        except InputError as error:
            log(WARNING, "%s is skipped: %s", path.name, error)
            continue
        _restore_optimizer(optimizer, arrays, header["optimizer"])
        return model_arrays(arrays), header
    raise InputError(f"nothing to resume: {folder} holds no checkpoint that can be read")


def has_checkpoint(folder: Path) -> bool:
    """Whether a run came as far as its first checkpoint, whatever has become of it since."""
    return bool(round_paths(folder))


def run_of(folder: Path) -> int | None:
    """Flower's id of the run that wrote the last good checkpoint; None if there is none."""
    for _, _, header in _readable(folder):
        return header.get("run")
    return None


def forget(folder: Path) -> None:
    """Clear away what a run that came to no checkpoint left: states that belong to no round."""
    shutil.rmtree(folder / _STATES, ignore_errors=True)


def _readable(folder: Path) -> Iterator[tuple[Path, NamedArrays, dict[str, Any]]]:
    """Checkpoints with their content, the last one first; damaged ones are warned of."""
    for path in reversed(round_paths(folder)):
        try:
            arrays, header = read_checkpoint(path)
        except InputError as error:
            log(WARNING, "skipped: %s", error)
            continue
        yield path, arrays, header


def _check_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    changed = [key for key in new if key not in _FREE and old.get(key) != new[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"cannot resume {path.name}: it was trained with --{key} {old.get(key)}, not {new[key]}"
        )


def training_state(
    weights: NamedArrays, optimizer: Optimizer
) -> tuple[NamedArrays, dict[str, dict[str, Any]]]:
    """Arrays `weights/NAME` and `optimizer/INDEX/SLOT`; and the slots that are no tensors (step counts), by index."""
    arrays = {f"{WEIGHTS}{name}": array for name, array in weights.items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for key, value in slots.items():
            if isinstance(value, torch.Tensor):
                arrays[f"optimizer/{index}/{key}"] = value.numpy()
            else:
                scalars.setdefault(str(index), {})[key] = value
    return arrays, scalars


def _restore_optimizer(
    optimizer: Optimizer, arrays: NamedArrays, scalars: Mapping[str, Mapping[str, Any]]
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(slots) for i, slots in scalars.items()}
    for name, array in arrays.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = torch.from_numpy(array)
    # Groups hold only hyperparameters, and those come from the settings.
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
