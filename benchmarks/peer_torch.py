"""Federated averaging as one would write it by hand in PyTorch: trains as many rounds as a line says.

Arguments: task (emnist_lr or emnist_cnn), HDF5 file, local epochs, clients. Prints `ready`, then seconds.
"""

import sys
import time

import torch
from torch import Tensor, nn

from tasks.catalogue import load_task

TASK, PATH, EPOCHS, CLIENTS = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def network() -> nn.Module:
    if TASK == "emnist_lr":
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


def read() -> list[tuple[Tensor, Tensor]]:
    """The clients' tensors."""
    ours = load_task(TASK)
    population = ours.population(PATH, "train")
    clients = []
    for name in list(population.client_ids)[:CLIENTS]:
        prepared = ours.prepare(population.examples(name))
        images = prepared.inputs if TASK == "emnist_lr" else prepared.inputs.permute(0, 3, 1, 2)
        clients.append((images.contiguous(), prepared.targets))
    return clients


clients = read()
model = network()
state = {name: value.clone() for name, value in model.state_dict().items()}
examples = sum(len(labels) for _, labels in clients)


def train() -> None:
    """A round."""
    totals = {name: torch.zeros_like(value) for name, value in state.items()}
    for images, labels in clients:
        model.load_state_dict(state)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(labels)).split(20):  # type: ignore[no-untyped-call]
                loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        for name, value in model.state_dict().items():
            totals[name].add_(value, alpha=len(labels))
    for name, total in totals.items():
        state[name] = total / examples


print("ready", flush=True)
for rounds in sys.stdin:
    started = time.perf_counter()
    for _ in range(int(rounds)):
        train()
    print(time.perf_counter() - started, flush=True)
