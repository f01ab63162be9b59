"""Seconds of a round in which clients do nothing: our exchange against Flower's `Strategy.start`.

    python benchmarks/round_trip.py --nodes 8 --rounds 3 --turns 3 [--executor flower] [--supernode quick]

Both run in one ServerApp on the same SuperLink and SuperNodes, in turns, with the same strategy (Flower's
FedAvg), the same messages (one a node) and the same clients.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from deploy.flower import COMPLETED
from deploy.loopback import (
    FLOWER,
    FLOWER_SUPERNODE,
    FORKING,
    QUICK_SUPERNODE,
    Loopback,
    end_on_signals,
)

APP = Path(__file__).parent / "noop"


def measure(folder: Path, options: argparse.Namespace) -> Any:
    """Run the app once on a federation in `folder`."""
    out = folder / "seconds.json"
    sizes = {key: getattr(options, key) for key in ("nodes", "rounds", "turns")}
    executor = FLOWER if options.executor == "flower" else FORKING
    supernode = QUICK_SUPERNODE if options.supernode == "quick" else FLOWER_SUPERNODE
    with Loopback(folder / "federation", executor, supernode) as loopback:
        loopback.start(["partition-id=0"] * options.nodes)
        run_id = loopback.submit({"out": str(out), **sizes}, APP)
        loopback.follow(run_id, 3600)
        status, details = loopback.wait(run_id, 10)
        if status != COMPLETED:
            raise SystemExit(f"{status}: {details}")
    return json.loads(out.read_text())


def main() -> None:
    """Print means over turns, as ratios to Flower's, and the ways of the messages of our loop.

    Means, because a round of Flower's takes one of two times: what misses a look waits 3 s for the next.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--executor", choices=("forking", "flower"), default="forking")
    parser.add_argument("--supernode", choices=("flower", "quick"), default="flower")
    options = parser.parse_args()
    end_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    means = {name: statistics.fmean(taken) for name, taken in result["seconds"].items()}
    for name, taken in result["seconds"].items():
        peer = "train: Flower" if name.startswith("train:") else "train, then evaluate: Flower"
        print(
            f"{name:34}{means[name]:6.2f} s a round ({min(taken):.2f} to {max(taken):.2f}), "
            f"{means[name] / means[peer]:.2f} of Flower's"
        )
    for way in ("there", "back"):
        said = statistics.quantiles(result[way], n=10)
        print(
            f"{way}: median {statistics.median(result[way]):.2f} s, 10% {said[0]:.2f}, 90% {said[-1]:.2f}"
        )


if __name__ == "__main__":
    main()
