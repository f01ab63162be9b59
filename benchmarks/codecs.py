"""Codec speed and size on a real update of the EMNIST CNN, one core, as ratios to copying the array.

    python benchmarks/codecs.py --data digits_by_writer_train.h5

The update is one writer's: five local epochs, client SGD 0.1, from a fresh model. Each turn times a copy
of the 6.6 MB and then every codec, so that a ratio compares neighbours in time; medians over turns. The
last column sets encoding and decoding against the local training that they follow.
"""

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from client.update import local_update
from tasks.catalogue import load_task
from tasks.stream import Stream
from weights.codecs.catalogue import decode_arrays, encode_arrays, make_codec
from weights.named import NamedArrays, arrays_of
from weights.wire import payload_bytes

CODECS = [
    "identity",
    "bfloat16",
    "uniform:bits=8",
    "uniform:bits=8,entropy=true",
    "step:bits=2.35,rounding=nearest",
    "step:bits=1.06,rounding=nearest",
    "step:bits=0.5,rounding=nearest",
    "step:bits=1.06",
    "eden:bits=4",
    "eden:bits=2",
    "eden:bits=1",
    "topk:fraction=0.02",
]


def real_update(data: str) -> tuple[NamedArrays, float]:
    """A writer's model update, and the seconds of local training that it took."""
    torch.manual_seed(0)
    task = load_task("emnist_cnn")
    model = task.model()
    population = task.population(data, "train")
    prepared = task.prepare(population.examples(population.client_ids[1]))
    stream = Stream(batch_size=20, local_epochs=5, shuffle_buffer=100)
    batches = stream.batches(prepared, np.random.default_rng(0))
    initial = {name: array.copy() for name, array in arrays_of(model).items()}
    started = time.perf_counter()
    update, _ = local_update(task, model, initial, batches, "sgd:lr=0.1")
    return update, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="sample", help="TFF's EMNIST layout, or sample")
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    update, training = real_update(options.data)
    flat = np.concatenate([array.ravel() for array in update.values()])
    copy = np.empty_like(flat)
    ratios: dict[str, list[tuple[float, float, float]]] = {spec: [] for spec in CODECS}
    sizes, errors = {}, {}
    for turn in range(options.turns):
        started = time.perf_counter()
        np.copyto(copy, flat)
        copying = time.perf_counter() - started
        for spec in CODECS:
            codecs = dict.fromkeys(update, make_codec(spec))
            started = time.perf_counter()
            record = encode_arrays(codecs, update, np.random.default_rng(turn))
            encoded = time.perf_counter()
            decoded = decode_arrays(record, codecs, like=update)
            decoding = time.perf_counter() - encoded
            ratios[spec].append((encoded - started, decoding, copying))
            sizes[spec] = payload_bytes(record)
            lost = np.concatenate([decoded[name].ravel() for name in update]) - flat
            errors[spec] = float(np.vdot(lost, lost) / np.vdot(flat, flat))
    print(f"{len(flat):,} parameters, {options.turns} turns, medians; training {training:.2f} s")
    print("| codec | bytes | error | encode | decode | both / copy | of training |")
    print("|---|---|---|---|---|---|---|")
    for spec in CODECS:
        encode, decode = (statistics.median(turn[i] for turn in ratios[spec]) for i in (0, 1))
        ratio = statistics.median((e + d) / c for e, d, c in ratios[spec])
        print(
            f"| `{spec}` | {sizes[spec]:,} | {errors[spec]:.4f} | {1e3 * encode:.0f} ms "
            f"| {1e3 * decode:.0f} ms | {ratio:.0f} | {100 * (encode + decode) / training:.1f}% |"
        )


if __name__ == "__main__":
    main()
