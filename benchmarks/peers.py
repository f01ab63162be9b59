"""A round of fedferry against its peers, in turns: a bare PyTorch loop, and TFF where TFF_PYTHON has it.

    TFF_PYTHON=/path/to/python python benchmarks/peers.py --data digits_by_writer_train.h5

Ten writers, batch 20, client SGD 0.02: `emnist_lr` for 5 local epochs, `emnist_cnn` for 1, in float32 and in
bfloat16. fedferry's round is whole: sampling, messages, training, checks, the mean, metrics, TensorBoard, JSON and
the checkpoint on disk. Peers are processes of their own, with PyTorch's and TFF's own settings of threads. In each turn
every peer trains a round that does not count, because the first one after a pause is slower, and then three that do, as
rounds follow each other in a run. A ratio is the median over turns of neighbours' quotients.
"""

import argparse
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import settings.threads  # noqa: F401  as our command does, before torch
from server.record import Recorder
from settings.schema import Settings
from simulation.federation import in_process
from tasks.catalogue import load_task

logging.getLogger("flwr").setLevel(logging.WARNING)
CLIENTS = 10
EPOCHS = {"emnist_lr": 5, "emnist_cnn": 1}
TIMED = 3
_OURS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
OWN = {name: value for name, value in os.environ.items() if name not in _OURS}
"""The peers' environment, without what we set in ours."""
Peer = Callable[[], float]


def fedferry(task: str, data: str, precision: str, folder: Path) -> Peer:
    """A round of ours with all that it leaves on disk."""
    names = list(load_task(task).population(data, "train").client_ids)[:CLIENTS]
    settings = Settings(
        task=task,
        data=data,
        client_ids=",".join(names),
        rounds=10_000,
        local_epochs=EPOCHS[task],
        eval_every=0,
        precision=precision,
        logdir=str(folder),
    )
    federation = in_process(settings)
    folder.mkdir(parents=True)
    recorder = Recorder(federation.settings, folder, [], {})

    def train() -> float:
        started = time.perf_counter()
        federation._leave(folder, recorder, federation.next())
        return time.perf_counter() - started

    return train


@contextmanager
def running(script: str, python: str, task: str, data: str) -> Iterator[Peer]:
    """A peer in a process of its own, as its user would start it: it waits while others are timed."""
    path = Path(__file__).with_name(script)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [python, str(path), task, data, str(EPOCHS[task]), str(CLIENTS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a group of its own, to be killed together
            env=OWN | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def train() -> float:
            stdin.write("\n")
            stdin.flush()
            return float(stdout.readline())

        try:
            if stdout.readline().strip() != "ready":
                log.seek(0)
                raise SystemExit(f"{script} does not start: {log.read()[-2000:]}")
            yield train
        finally:
            with suppress(OSError, subprocess.TimeoutExpired):
                stdin.close()  # no more lines: it ends by itself, and TFF ends its own process
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measure(task: str, data: str, turns: int) -> dict[str, object]:
    """Seconds of every peer in every turn, and the ratios of ours to theirs."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = running("peer_torch.py", sys.executable, task, data)
        peers = {"bare": stack.enter_context(bare)}
        peers["fedferry"] = fedferry(task, data, "float32", folder / "float32")
        if task == "emnist_cnn":
            peers["fedferry bf16"] = fedferry(task, data, "bf16", folder / "bf16")
        if python := os.environ.get("TFF_PYTHON"):
            peers["TFF"] = stack.enter_context(running("peer_tff.py", python, task, data))
        for train in peers.values():
            train()
        seconds: dict[str, list[float]] = {peer: [] for peer in peers}
        for _ in range(turns):
            for peer, train in peers.items():
                train()
                seconds[peer].append(statistics.mean(train() for _ in range(TIMED)))
    ratios = {}
    for ours in (peer for peer in peers if peer.startswith("fedferry")):
        for theirs in (peer for peer in peers if not peer.startswith("fedferry")):
            quotients = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
            ratios[f"{ours} / {theirs}"] = quotients
    return {"task": task, "seconds": seconds, "ratios": ratios}


def spread(values: list[float]) -> str:
    """Median, and the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.4f} ({low:.4f} to {high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="TFF's EMNIST layout, HDF5")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--task", choices=list(EPOCHS), action="append")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [measure(task, options.data, options.turns) for task in options.task or EPOCHS]
    for result in results:
        print(f"{result['task']}, {options.turns} turns, medians and the middle half")
        for unit in ("seconds", "ratios"):
            for name, values in result[unit].items():  # type: ignore[attr-defined]
                print(f"  {unit[:-1]:>6}  {name:<22} {spread(values)}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
