"""One step for all against equal bits for all: the error of a cohort's updates at equal bytes.

    python benchmarks/allocation.py --data digits_by_writer_train.h5

Ten writers' updates of the EMNIST CNN, in the first round and after two rounds of training. For each
number of bits, `step:bits=B` gives every tensor of every client the same share; the common step is the one
that makes the cohort's bytes equal. The error is that of the mean update, weighted by examples.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from client.update import local_update
from tasks.catalogue import load_task
from tasks.stream import Stream
from weights.codecs.catalogue import decode_arrays, encode_arrays, make_codec
from weights.named import NamedArrays, arrays_of
from weights.wire import payload_bytes

Cohort = list[tuple[float, NamedArrays]]


def cohort_updates(data: str, rounds: int) -> Cohort:
    """(num_examples, update) of ten writers, after `rounds` rounds of plain averaging."""
    torch.manual_seed(0)
    task = load_task("emnist_cnn")
    model = task.model()
    weights = {name: array.copy() for name, array in arrays_of(model).items()}
    population = task.population(data, "train")
    stream = Stream(batch_size=20, local_epochs=5, shuffle_buffer=100)
    for server_round in range(rounds + 1):
        cohort = []
        for writer in population.client_ids[10 * server_round : 10 * server_round + 10]:
            prepared = task.prepare(population.examples(writer))
            batches = stream.batches(prepared, np.random.default_rng(0))
            update, _ = local_update(task, model, weights, batches, "sgd:lr=0.1")
            cohort.append((float(len(prepared)), update))
        mean = weighted_mean(cohort)
        weights = {name: weights[name] - mean[name] for name in weights}
    return cohort


def weighted_mean(cohort: Cohort) -> NamedArrays:
    """The pseudo-gradient."""
    total = sum(examples for examples, _ in cohort)
    return {
        name: np.sum([np.float32(n / total) * update[name] for n, update in cohort], axis=0)
        for name in cohort[0][1]
    }


def coded(cohort: Cohort, spec: str) -> tuple[float, float]:
    """Mean bytes a client, and the normalised error of the mean update."""
    codec = make_codec(spec)
    sent, size = [], 0
    for index, (examples, update) in enumerate(cohort):
        codecs = dict.fromkeys(update, codec)
        record = encode_arrays(codecs, update, np.random.default_rng(index))
        size += payload_bytes(record)
        sent.append((examples, decode_arrays(record, codecs, like=update)))
    exact, lossy = weighted_mean(cohort), weighted_mean(sent)
    lost = sum(float(np.sum((exact[name] - lossy[name]) ** 2)) for name in exact)
    return size / len(cohort), lost / sum(float(np.sum(exact[name] ** 2)) for name in exact)


def common_step(cohort: Cohort, size: float, rounding: str) -> tuple[float, float]:
    """The same with one absolute step for all, at the same bytes (bisection over the step)."""
    low, high = 1e-6, 1.0
    for _ in range(18):
        middle = (low * high) ** 0.5
        result = coded(cohort, f"step:step={middle},rounding={rounding}")
        low, high = (middle, high) if result[0] > size else (low, middle)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample", help="TFF's EMNIST layout, or sample")
    options = parser.parse_args()
    print(
        "| after rounds | rounding | bits | bytes | error, equal bits | error, one step | ratio |"
    )
    print("|---|---|---|---|---|---|---|")
    for rounds in (0, 2):
        cohort = cohort_updates(options.data, rounds)
        for bits, rounding in ((2.35, "nearest"), (1.06, "nearest"), (0.5, "nearest")):
            size, equal = coded(cohort, f"step:bits={bits},rounding={rounding}")
            same_size, one = common_step(cohort, size, rounding)
            assert abs(same_size / size - 1) < 0.02
            print(
                f"| {rounds} | {rounding} | {bits} | {size:,.0f} | {equal:.4f} | {one:.4f} "
                f"| {one / equal:.2f} |"
            )


if __name__ == "__main__":
    main()
