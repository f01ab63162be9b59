"""Tasks by name."""

import functools

from settings.errors import InputError
from settings.spec import construct
from tasks.emnist import emnist_cnn, emnist_lr
from tasks.shakespeare import shakespeare
from tasks.task import Task

TASKS = {"shakespeare": shakespeare, "emnist_lr": emnist_lr, "emnist_cnn": emnist_cnn}


@functools.lru_cache(maxsize=16)
def load_task(spec: str) -> Task:
    """The task that `NAME[:key=value,...]` or `module:attribute[:key=value,...]` names.

    Raises:
        InputError: Unknown name or option, or an object that is not a Task.
    """
    task = construct(spec, TASKS, "task")
    if not isinstance(task, Task):
        raise InputError(f"task {spec!r} is a {type(task).__name__}, not a tasks.task.Task")
    return task
