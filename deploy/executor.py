"""A `flower-superexec` whose apps start at once: each is forked from a process that has loaded PyTorch.

    python deploy/executor.py --insecure --runtime-api-address 127.0.0.1:9094

takes the flags of `flower-superexec` and does the same: it asks a SuperNode (or a SuperLink) for tasks and runs
each in a process of its own. Flower starts a new Python for every message, which spends seconds of a CPU on
loading Flower and PyTorch before it looks at the message; a fork has them already, and does not spend a second
on taking them apart when it ends. The app itself is loaded afresh by every process, from the bundle that came
with the run.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import IO

from flwr.supercore import constant

_PATIENCE = {
    "PULL_INITIAL_BACKOFF": 0.05,
    "PULL_BACKOFF_CAP": 0.2,
    "PULL_MAX_TRIES_PER_OBJECT": None,
}
"""How an app waits for an object that is still being uploaded. Flower's waits 1 s, then 2, up to 10, and 500 times;
what is left is its limit of two hours."""

_LOADED = ("torch", "torch._dynamo", "h5py", "httpcore", "flwr.supernode.cli")


def serve(tasks: IO[str]) -> None:
    """Fork for every line; returns when there are no more, and in every child when its task is done."""
    atexit.register(leave)  # first, hence called last
    for name, value in _PATIENCE.items():
        setattr(constant, name, value)
    for name in ("settings.threads", *_LOADED):
        importlib.import_module(name)
    del sys.modules["settings.threads"], sys.modules["settings"]  # an app brings its own
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in tasks:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run_app(**json.loads(line))


def run_app(command: str, words: list[str], silent: bool) -> None:
    """Do what Flower's console script `command` does, and exit."""
    name = Path("/proc/self/comm")
    if name.exists():
        name.write_text(command)  # for `ps`
    if silent:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    sys.argv = [command, *words]
    (script,) = distribution("flwr").entry_points.select(name=command)
    sys.exit(script.load()())


def leave() -> None:
    """End this process without freeing what is in its memory, object by object; nobody reads the exit code."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def superexec(tasks: IO[str]) -> None:
    """Run `flower-superexec`, launching its tasks by a line each."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec import run_superexec
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
    from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResult

    class ForkingExecutor(SubprocessExecutor):
        """Gives the apps the arguments that `SubprocessExecutor` gives them."""

        def launch(self, spec: ExecutionSpec) -> LaunchResult:
            address = constant.TASK_TYPE_TO_APPIO_API_ADDRESS_ARG[spec.task_type]
            words = [address, spec.runtime_api_address, "--token", spec.token]
            if spec.insecure:
                words.append("--insecure")
            elif spec.root_certificates_path is not None:
                words += ["--root-certificates", spec.root_certificates_path]
            if spec.parent_pid is not None:
                words += ["--parent-pid", str(spec.parent_pid)]
            if spec.runtime_dependency_install:
                words.append("--allow-runtime-dependency-installation")
            command = constant.TASK_TYPE_TO_COMMAND[spec.task_type]
            task = {"command": command, "words": words, "silent": spec.suppress_output}
            print(json.dumps(task), file=tasks, flush=True)
            return LaunchResult.accepted()

    # Flower has two executors, subprocesses and Kubernetes, and no way to name another.
    setattr(run_superexec, "get_executor", lambda *_, **__: ForkingExecutor())  # noqa: B010
    flower_superexec()


def main() -> None:
    """Two processes: this one is the SuperExec, its child forks."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.close(write)
        serve(os.fdopen(read))
    else:
        os.close(read)
        superexec(os.fdopen(write, "w"))


if __name__ == "__main__":
    main()
