"""Seconds of a round in which clients do nothing: our exchange against Flower's `Strategy.start`.

    python benchmarks/round_trip.py --nodes 8 --rounds 3 --turns 3 [--executor flower]

Both run in one ServerApp on the same SuperLink and SuperNodes, in turns, with the same strategy (Flower's
FedAvg), the same messages (one a node) and the same clients.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from deploy.loopback import COMPLETED, FLOWER, FORKING, Loopback

APP = Path(__file__).parent / "noop"


def measure(folder: Path, options: argparse.Namespace) -> Any:
    """Run the app once on a federation in `folder`."""
    out = folder / "seconds.json"
    sizes = {key: getattr(options, key) for key in ("nodes", "rounds", "turns")}
    with Loopback(
        folder / "federation", FLOWER if options.executor == "flower" else FORKING
    ) as loopback:
        loopback.start(["partition-id=0"] * options.nodes)
        run_id = loopback.submit({"out": str(out), **sizes}, APP)
        loopback.follow(run_id, 3600)
        status, details = loopback.wait(run_id, 10)
        if status != COMPLETED:
            raise SystemExit(f"{status}: {details}")
    return json.loads(out.read_text())


def main() -> None:
    """Print the medians over turns and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--executor", choices=("forking", "flower"), default="forking")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    for what, loops in result["seconds"].items():
        flower, ours = (statistics.median(loops[name]) for name in ("flower", "ours"))
        turns = ", ".join(
            f"{a:.1f}/{b:.1f}" for a, b in zip(loops["ours"], loops["flower"], strict=True)
        )
        print(
            f"{what}: ours {ours:.2f} s a round, Flower {flower:.2f} s: {ours / flower:.2f} of it ({turns})"
        )
    for way in ("there", "back"):
        said = statistics.quantiles(result[way], n=10)
        print(
            f"{way}: median {statistics.median(result[way]):.2f} s, 10% {said[0]:.2f}, 90% {said[-1]:.2f}"
        )


if __name__ == "__main__":
    main()
