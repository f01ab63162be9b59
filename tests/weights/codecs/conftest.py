"""A real update of the EMNIST CNN."""

from pathlib import Path

import numpy as np
import pytest

from client.update import local_update
from tasks.catalogue import load_task
from tasks.stream import Stream
from weights.keras import load_model
from weights.named import NamedArrays, arrays_of


@pytest.fixture(scope="session")
def real_update(tff_data: Path) -> NamedArrays:
    """What one writer sends in round 2: 5 local epochs of SGD(0.1) from the mean of two others'."""
    task = load_task("emnist_cnn")
    model = load_model(tff_data.parent / "parity/emnist_cnn_init.h5", logits=True)
    population = task.population(str(tff_data / "digits_by_writer_train.h5"), "train")
    stream = Stream(batch_size=20, local_epochs=5, shuffle_buffer=100)
    rng = np.random.default_rng(0)

    def update(initial: NamedArrays, writer: str) -> NamedArrays:
        prepared = task.prepare(population.examples(writer))
        batches = stream.batches(prepared, rng)
        return local_update(task, model, initial, batches, "sgd:lr=0.1")[0]

    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    first, *others = sorted(population.client_ids)[:3]
    updates = [update(initial, writer) for writer in others]
    mean = {name: sum(u[name] for u in updates) / len(updates) for name in initial}
    return update({name: initial[name] - mean[name] for name in initial}, first)
