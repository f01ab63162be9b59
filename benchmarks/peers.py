"""A round of fedferry against its peers, in turns: a bare PyTorch loop, and TFF where TFF_PYTHON has it.

    TFF_PYTHON=/path/to/python python benchmarks/peers.py --data digits_by_writer_train.h5

Ten writers, batch 20, client SGD 0.02: `emnist_lr` for 5 local epochs, `emnist_cnn` for 1, in float32 and in
bfloat16. fedferry's round is whole: sampling, messages, training, checks, the mean, metrics, TensorBoard, JSON and
the checkpoint, till the last one is on disk. All are processes of their own, with PyTorch's and TFF's own settings of
threads. In each turn every peer trains a round that does not count, because the first one after a pause is slower, and
then some that do, as rounds follow each other in a run. A ratio is the median over turns of neighbours' quotients.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

CLIENTS = 10
EPOCHS = {"emnist_lr": 5, "emnist_cnn": 1}
TIMED = {"emnist_lr": 10, "emnist_cnn": 3}
Peer = Callable[[int], float]


@contextmanager
def running(script: str, python: str, task: str, data: str, *more: str) -> Iterator[Peer]:
    """A peer in a process of its own, as its user would start it: it waits while others are timed."""
    path = Path(__file__).with_name(script)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [python, str(path), task, data, str(EPOCHS[task]), str(CLIENTS), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # a group of its own, to be killed together
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def train(rounds: int) -> float:
            stdin.write(f"{rounds}\n")
            stdin.flush()
            return float(stdout.readline()) / rounds

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
    scripts = {
        "bare": ("peer_torch.py", sys.executable),
        "fedferry": ("peer_fedferry.py", sys.executable, "float32"),
    }
    if task == "emnist_cnn":
        scripts["fedferry bf16"] = ("peer_fedferry.py", sys.executable, "bf16")
    if python := os.environ.get("TFF_PYTHON"):
        scripts["TFF"] = ("peer_tff.py", python)
    with ExitStack() as stack:
        peers = {
            peer: stack.enter_context(running(script, interpreter, task, data, *more))
            for peer, (script, interpreter, *more) in scripts.items()
        }
        for train in peers.values():
            train(1)
        seconds: dict[str, list[float]] = {peer: [] for peer in peers}
        for _ in range(turns):
            for peer, train in peers.items():
                train(1)
                seconds[peer].append(train(TIMED[task]))
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
