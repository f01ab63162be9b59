"""Checkpoints of a run: everything needed to go on as if it had never stopped."""

from collections.abc import Mapping
from logging import WARNING
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from flwr.supercore import log
from torch.optim import Optimizer

from settings.errors import InputError
from settings.schema import Settings
from weights.checkpoint import model_arrays, read_checkpoint, write_checkpoint
from weights.named import NamedArrays

_KEPT = 3
_FREE = {"rounds", "logdir", "save", "json", "resume"} | {
    f"eval{suffix}" for suffix in ("uation", "-every", "-cohort", "-batches")
}
"""Settings that a resumed run may change: they do not touch the training of earlier rounds."""


@runtime_checkable
class KeepsStates(Protocol):
    """A grid whose nodes' states live and die with this process: they belong to the checkpoint."""

    def save_states(self, folder: Path, server_round: int) -> None:
        """Write what nodes remember after a round."""

    def load_states(self, folder: Path, server_round: int) -> None:
        """Let nodes remember what they did after that round."""


def save_state(
    folder: Path,
    server_round: int,
    weights: NamedArrays,
    optimizer: Optimizer,
    header: Mapping[str, Any],
) -> Path:
    """Write the checkpoint of a finished round and drop all but the last few.

    The random state needs no entry: cohorts, shuffles and dropout are drawn from (seed, round, client).

    Args:
        folder: Holds `round-NNNNNN.safetensors` files.
        server_round: The round that is finished.
        weights: The global model.
        optimizer: The server optimizer.
        header: JSON kept with it: the settings under "settings", the history of rounds.
    """
    tensors, scalars = _optimizer_state(optimizer)
    arrays = {f"weights/{name}": array for name, array in weights.items()} | tensors
    path = folder / f"round-{server_round:06d}.safetensors"
    write_checkpoint(path, arrays, {**header, "round": server_round, "optimizer": scalars})
    for old in _checkpoints(folder)[:-_KEPT]:
        old.unlink()
    return path


def load_state(
    folder: Path, settings: Settings, optimizer: Optimizer
) -> tuple[NamedArrays, dict[str, Any]]:
    """Read the last good checkpoint, restore the optimizer, and return the weights and the header.

    A damaged checkpoint is skipped with a warning, for the one before it.

    Raises:
        InputError: No good checkpoint, or one of a run with other settings.
    """
    for path in reversed(_checkpoints(folder)):
        try:
            arrays, header = read_checkpoint(path)
        except InputError as error:
            log(WARNING, "skipped: %s", error)
            continue
        _check_settings(header["settings"], settings.to_config(), path)
        _restore_optimizer(optimizer, arrays, header["optimizer"])
        return model_arrays(arrays), header
    raise InputError(f"nothing to resume: {folder} holds no checkpoint that can be read")


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*.safetensors"))


def _check_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    changed = [key for key in new if key not in _FREE and old.get(key) != new[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"cannot resume {path.name}: it was trained with --{key} {old.get(key)}, not {new[key]}"
        )


def _optimizer_state(optimizer: Optimizer) -> tuple[NamedArrays, dict[str, dict[str, Any]]]:
    """Tensors by `optimizer/INDEX/KEY`, and what is not a tensor (step counts) as JSON."""
    tensors: NamedArrays = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for key, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{key}"] = value.numpy()
            else:
                scalars.setdefault(str(index), {})[key] = value
    return tensors, scalars


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
