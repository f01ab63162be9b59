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

PYPROJECT = """
[project]
name = "noop"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "noop:server_app"
clientapp = "noop:client_app"

[tool.flwr.app.config]
out = ""
nodes = 8
rounds = 3
turns = 3
"""

APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Array, ConfigRecord, MetricRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()
def train(message, context):
    metrics = MetricRecord({"num-examples": 1, "reached": time.time()})
    content = RecordDict({"arrays": message.content.array_records["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


@client_app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 1, "reached": time.time()})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid, context):
    from server.exchange import exchange

    config = context.run_config
    nodes, rounds = config["nodes"], config["rounds"]
    arrays = ArrayRecord({"w": Array(np.zeros(10, np.float32))})
    there, back = [], []

    def timed(replies, pushed):
        for reply in replies:
            (metrics,) = reply.content.metric_records.values()
            there.append(metrics.pop("reached") - pushed)
            back.append(time.time() - pushed - there[-1])
            yield reply

    def fedavg(evaluates):
        return FedAvg(
            fraction_train=1.0,
            fraction_evaluate=float(evaluates),
            min_train_nodes=nodes,
            min_evaluate_nodes=nodes if evaluates else 0,
            min_available_nodes=nodes,
        )

    def flower(evaluates):
        fedavg(evaluates).start(grid, arrays, num_rounds=rounds)

    def ours(evaluates):
        strategy = fedavg(evaluates)
        for number in range(1, rounds + 1):
            phases = [(strategy.configure_train, strategy.aggregate_train)]
            if evaluates:
                phases.append((strategy.configure_evaluate, strategy.aggregate_evaluate))
            for configure, aggregate in phases:
                messages = list(configure(number, arrays, ConfigRecord(), grid))
                aggregate(number, timed(exchange(grid, messages, 600.0), time.time()))

    flower(False)  # everybody has connected, and has the app
    seconds = {"train": {"flower": [], "ours": []}, "train and evaluate": {"flower": [], "ours": []}}
    for _ in range(config["turns"]):
        for what, results in seconds.items():
            for loop in (flower, ours):
                started = time.perf_counter()
                loop(what != "train")
                results[loop.__name__].append((time.perf_counter() - started) / rounds)
    result = {"seconds": seconds, "there": there, "back": back}
    Path(config["out"]).write_text(json.dumps(result))
"""


def measure(folder: Path, options: argparse.Namespace) -> Any:
    """Run the app once on a federation in `folder`."""
    app = folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PYPROJECT)
    (app / "noop.py").write_text(APP)
    out = folder / "seconds.json"
    sizes = {key: getattr(options, key) for key in ("nodes", "rounds", "turns")}
    with Loopback(
        folder / "federation", FLOWER if options.executor == "flower" else FORKING
    ) as loopback:
        loopback.start(["partition-id=0"] * options.nodes)
        run_id = loopback.submit({"out": str(out), **sizes}, app)
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
