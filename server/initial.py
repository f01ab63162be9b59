"""The model that a run starts from: a checkpoint's, or the task's own."""

from pathlib import Path

import torch
from torch import nn

from settings.errors import InputError
from tasks.published import cached
from tasks.task import Task
from weights.checkpoint import model_arrays, read_checkpoint, write_checkpoint
from weights.files import check_word
from weights.keras import KerasModel, load_model, save_model
from weights.named import arrays_of, load_arrays
from weights.recurrent import reset_states

SAFETENSORS = ".safetensors"


def checkpoint_of(task: Task, init: str) -> Path | None:
    """The checkpoint that a run starts from: `--init`, else the task's own, else none.

    Raises:
        InputError: `dickens`, which is what `fedferry download dickens` fetches, is not there yet; or it is misspelt.
    """
    if init == "dickens":
        return cached(init)
    check_word(init, "dickens")
    return Path(init) if init else task.checkpoint


def initial_model(task: Task, init: str, seed: int) -> nn.Module:
    """The model that a run starts from, drawn from `seed` where it is drawn at random.

    Raises:
        InputError: A checkpoint that cannot be read, or one whose model does not fit the task.
    """
    torch.manual_seed(seed)
    path = checkpoint_of(task, init)
    if path is None:
        return task.build("")
    if path.suffix == SAFETENSORS:
        arrays, header = read_checkpoint(path)
        model = task.build(header.get("architecture", ""))
        load_arrays(model, model_arrays(arrays), str(path))
    else:
        model = load_model(path, logits=True)
    _check_fit(task, model, path)
    return model


def architecture_of(model: nn.Module) -> str:
    """The Keras `model_config` that rebuilds the model; empty for a module that only its task can build."""
    return model.config if isinstance(model, KerasModel) else ""


def check_target(path: Path, template: Path | None) -> None:
    """Raise InputError unless `save_final` will know how to write `path`."""
    is_keras = template is not None and template.suffix != SAFETENSORS
    if path.suffix != SAFETENSORS and not is_keras:
        raise InputError(
            f"cannot write {path}: a Keras file is a copy of the Keras checkpoint that a run starts "
            f"from; this one starts from none, so use a name that ends in {SAFETENSORS}"
        )


def save_final(model: nn.Module, path: Path, template: Path | None) -> None:
    """Write a model: safetensors by suffix, otherwise a copy of the Keras file `template`."""
    check_target(path, template)
    if path.suffix == SAFETENSORS or template is None:
        header = {"architecture": architecture_of(model)}
        write_checkpoint(path, arrays_of(model), header)
    else:
        save_model(model, template, path)


@torch.no_grad()
def _check_fit(task: Task, model: nn.Module, path: Path) -> None:
    """Try the model on the task's probe, so that a misfit is said here and not by every client."""
    if task.probe is None:
        return
    model.eval()
    try:
        task.loss(model(task.probe.inputs), task.probe)
    except (RuntimeError, IndexError, ValueError) as error:
        layers = ", ".join(type(layer).__name__ for layer in model.children())
        raise InputError(
            f"{path} holds a model of another architecture than task {task.name} needs: {layers}"
        ) from error
    finally:
        reset_states(model)
