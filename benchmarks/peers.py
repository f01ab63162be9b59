"""A round of fedferry against its peers, in turns: a bare PyTorch loop, and TFF where TFF_PYTHON has it.

    TFF_PYTHON=/path/to/python python benchmarks/peers.py --data digits_by_writer_train.h5

Ten writers, batch 20, client SGD 0.02: `emnist_lr` for 5 local epochs, `emnist_cnn` for 1, in float32 and in
bfloat16. fedferry's round is whole: sampling, messages, training, checks, the mean, metrics, TensorBoard, JSON and
the checkpoint on disk. The bare loop has the writers' tensors in memory, a contiguous model, torch.optim.SGD, and
averages the weights. Each turn times every peer once; a ratio is the median over turns of neighbours' quotients.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn

from server.record import Recorder
from settings.schema import Settings
from simulation.federation import in_process
from tasks.catalogue import load_task

logging.getLogger("flwr").setLevel(logging.WARNING)
CLIENTS = 10
EPOCHS = {"emnist_lr": 5, "emnist_cnn": 1}
Peer = Callable[[], float]


def network(task: str) -> nn.Module:
    if task == "emnist_lr":
        return nn.Linear(784, 10)
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(7 * 7 * 64, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def bare_loop(task: str, data: str) -> Peer:
    """Federated averaging as one would write it by hand."""
    ours = load_task(task)
    population = ours.population(data, "train")
    clients: list[tuple[Tensor, Tensor]] = []
    for name in list(population.client_ids)[:CLIENTS]:
        prepared = ours.prepare(population.examples(name))
        images = prepared.inputs if task == "emnist_lr" else prepared.inputs.permute(0, 3, 1, 2)
        clients.append((images.contiguous(), prepared.targets))
    model = network(task)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def train() -> float:
        started = time.perf_counter()
        totals = {name: torch.zeros_like(value) for name, value in state.items()}
        for images, labels in clients:
            model.load_state_dict(state)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
            for _ in range(EPOCHS[task]):
                for chosen in torch.randperm(len(labels)).split(20):  # type: ignore[no-untyped-call]
                    loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            for name, value in model.state_dict().items():
                totals[name].add_(value, alpha=len(labels))
        examples = sum(len(labels) for _, labels in clients)
        for name, total in totals.items():
            state[name] = total / examples
        return time.perf_counter() - started

    return train


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


def tff(task: str, data: str, folder: Path) -> tuple[Peer, subprocess.Popen[str]] | None:
    """TFF in a process of its own, which waits while others are timed."""
    python = os.environ.get("TFF_PYTHON")
    if not python:
        return None
    script = Path(__file__).with_name("peer_tff.py")
    command = [python, str(script), task, data, str(EPOCHS[task]), str(CLIENTS)]
    with (folder / "tff.log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    if stdout.readline().strip() != "ready":
        raise SystemExit(f"TFF does not start: {(folder / 'tff.log').read_text()[-2000:]}")

    def train() -> float:
        stdin.write("\n")
        stdin.flush()
        return float(stdout.readline())

    return train, process


def measure(task: str, data: str, turns: int) -> dict[str, object]:
    """Seconds of every peer in every turn, and the ratios of ours to theirs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peers = {"bare": bare_loop(task, data)}
        peers["fedferry"] = fedferry(task, data, "float32", folder / "float32")
        if task == "emnist_cnn":
            peers["fedferry bf16"] = fedferry(task, data, "bf16", folder / "bf16")
        started = tff(task, data, folder)
        if started:
            peers["TFF"] = started[0]
        for _ in range(2):
            for train in peers.values():
                train()
        seconds: dict[str, list[float]] = {peer: [] for peer in peers}
        for _ in range(turns):
            for peer, train in peers.items():
                seconds[peer].append(train())
        if started:
            started[1].kill()
            started[1].wait()
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
