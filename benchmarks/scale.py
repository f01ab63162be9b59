"""What many clients cost: memory of a round with 10 and with 10,000, and seconds to draw from a million.

    python benchmarks/scale.py

Every run is a process of its own, so that its peak of resident memory (VmHWM) is its own. The clients of
`emnist_lr` here have 20 to 40 made-up images each, made when they are read.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from settings.schema import Settings
from tasks.data import Examples, Lazy
from tasks.emnist import emnist_lr
from tasks.task import Task

logging.getLogger("flwr").setLevel(logging.WARNING)


def crowd(clients: int = 10) -> Task:
    """`emnist_lr` on made-up clients."""

    def read(client_id: str) -> Examples:
        rng = np.random.default_rng(int(client_id))
        size = rng.integers(20, 41)
        pixels = rng.random((size, 28, 28), np.float32)
        return {"pixels": pixels, "label": rng.integers(10, size=size).astype(np.int32)}

    def population(path: str, split: str) -> Lazy:
        return Lazy((f"{index:07d}" for index in range(clients)), read)

    return replace(emnist_lr(), open=population)


def measure(population: int, cohort: int) -> dict[str, Any]:
    """Open a population and train a round; in this process."""
    from simulation.federation import in_process

    started = time.perf_counter()
    config = {"task": f"scale:crowd:clients={population}", "data": "none", "cohort": str(cohort)}
    federation = in_process(Settings(**config, rounds=2, local_epochs=5, eval_every=0))  # type: ignore[arg-type]
    opened = time.perf_counter()
    federation.cohort.train(1)
    drawn = time.perf_counter()
    record = federation.next()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "population": population,
        "cohort": cohort,
        "opening_s": opened - started,
        "drawing_ms": 1e3 * (drawn - opened),
        "round_s": record.seconds,
        "failed": len(record.comm["failed"]),
        "examples": record.train["num_examples"],
        "peak_mb": int(status["VmHWM"].split()[0]) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, metavar=("POPULATION", "COHORT"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    results = []
    for population, cohort in ((10_000, 10), (10_000, 10_000), (1_000_000, 10)):
        command = [sys.executable, __file__, "--one", str(population), str(cohort)]
        with tempfile.TemporaryFile("w+") as out:
            subprocess.run(command, check=True, stdout=out)
            out.seek(0)
            results.append(json.loads(out.read().splitlines()[-1]))
        said = results[-1]
        print(
            f"{population:>9,} clients, {cohort:>6,} in a round: opened in {said['opening_s']:.2f} s, drawn in "
            f"{said['drawing_ms']:.1f} ms, trained in {said['round_s']:.2f} s, peak {said['peak_mb']:.0f} MB"
        )
    print(f"10,000 instead of 10: {results[1]['peak_mb'] - results[0]['peak_mb']:+.0f} MB")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
