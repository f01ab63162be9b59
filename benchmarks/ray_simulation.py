"""A whole run of fedferry against Flower's Ray simulation of the same app, from command to exit.

    python benchmarks/ray_simulation.py --data digits_by_writer_train.h5

Ten writers, batch 20, client SGD 0.02, 20 rounds, no evaluation: `emnist_lr` for 5 local epochs, `emnist_cnn` for 1.
Ours is `fedferry run`. Flower's is `flwr run . --stream` on a SuperLink that waits for it already (and looks for new
runs every 0.1 s, not every 1 s), or Flower's older function `run_simulation`, which needs no SuperLink; both have a
simulated node for each client and an actor for each CPU. Every turn runs each command once, one after the other. All
must end with the same training loss and accuracy. Needs the extra `ray`.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from deploy.flower import BIN, config_words, write_connection
from deploy.loopback import ROOT, Loopback, end_on_signals, free_port
from settings.schema import Settings, Value
from tasks.catalogue import load_task

CLIENTS, ROUNDS = 10, 20
EPOCHS = {"emnist_lr": 5, "emnist_cnn": 1}
TOLERANCES = {"first": 1e-5, "last": 1e-2}
"""Relative, of a round's metrics. Other numbers of threads and orders of replies round otherwise: in the CNN's 1,000
steps that grows."""


def commands(config: dict[str, Value]) -> dict[str, list[str]]:
    """The peers by name; each writes what it trained to the JSON file that `config` names."""
    options = [word for key, value in config.items() for word in (f"--{key}", str(value))]
    nodes = {
        "num-supernodes": CLIENTS,
        "client-resources-num-cpus": 1,
        "init-args-num-cpus": os.cpu_count() or 1,
    }
    flower = ["--federation-config", config_words(nodes), "--run-config", config_words(config)]
    return {
        "fedferry run": [str(BIN / "fedferry"), "run", options[1], *options[2:]],
        "flwr run": [str(BIN / "flwr"), "run", str(ROOT), "ray", "--stream", *flower],
        "run_simulation": [sys.executable, __file__, "--simulate", json.dumps(config)],
    }


def simulate(config: dict[str, Value]) -> None:
    """Run the app by `run_simulation`, which has no run config of its own to give."""
    from flwr.simulation import run_simulation

    class Configured(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            from client.app import app

            # Flower refuses changes to a node's own run config.
            node = (context.run_id, context.node_id, context.node_config, context.state)
            return app(message, Context(*node, run_config=config))

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        from server.app import app

        context.run_config.update(config)
        app(grid, context)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    limits = {"init_args": {"num_cpus": os.cpu_count() or 1}}
    run_simulation(server, Configured(), CLIENTS, backend_config={**resources, **limits})  # type: ignore[dict-item]


def start_superlink(loopback: Loopback) -> None:
    """A SuperLink as `flwr run` starts one itself for a simulation, with its database in memory."""
    port = free_port()
    address = ("--host", "127.0.0.1", "--port", str(port))
    loopback._start(
        "superlink", str(BIN / "flower-superlink"), "--insecure", "--simulation", *address
    )
    if not loopback._listens("superlink", port):
        raise SystemExit("the SuperLink does not start")
    write_connection(Path(loopback.environment["FLWR_HOME"]), "ray", f"127.0.0.1:{port}")


def run(peer: str, command: list[str], loopback: Loopback, out: Path) -> tuple[float, Any]:
    """Seconds from a command's start to its end, and the training metrics of the first and the last round."""
    with (loopback.out / "last.log").open("w") as log:
        started = time.perf_counter()
        subprocess.run(command, env=loopback.environment, stdout=log, stderr=subprocess.STDOUT)
        seconds = time.perf_counter() - started
    rounds = json.loads(out.read_text())["rounds"] if out.exists() else []
    if [record["comm"]["answered"] for record in rounds] != [CLIENTS] * ROUNDS:
        raise SystemExit(f"{peer} failed: {(loopback.out / 'last.log').read_text()[-3000:]}")
    return seconds, {"first": rounds[0]["train"], "last": rounds[-1]["train"]}


def measure(task: str, data: str, turns: int, loopback: Loopback) -> dict[str, Any]:
    """Seconds of every command in every turn, and the ratios of Flower's to ours."""
    names = list(load_task(task).population(data, "train").client_ids)[:CLIENTS]
    seconds: dict[str, list[float]] = {}
    metrics: dict[str, Any] = {}
    for turn in range(turns):
        logdir = loopback.out / f"{task}-{turn}"
        config: dict[str, Value] = {"task": task, "data": data, "client-ids": ",".join(names)}
        config |= {"rounds": ROUNDS, "local-epochs": EPOCHS[task], "eval-every": 0}
        for peer in commands(config):
            out = logdir / f"{peer.replace(' ', '-')}"
            paths: dict[str, Value] = {"logdir": str(out), "json": f"{out}.json"}
            command = commands(config | paths)[peer]
            taken, metrics[peer] = run(peer, command, loopback, Path(f"{out}.json"))
            seconds.setdefault(peer, []).append(taken)
    ours, *others = seconds
    ratios = {
        peer: [b / a for a, b in zip(seconds[ours], seconds[peer], strict=True)] for peer in others
    }
    return {"task": task, "seconds": seconds, "ratios": ratios, "metrics": metrics}


def check(result: dict[str, Any]) -> None:
    """All commands must have trained to the same."""
    expected = result["metrics"]["fedferry run"]
    for peer, metrics in result["metrics"].items():
        for place, tolerance in TOLERANCES.items():
            for name, value in expected[place].items():
                if abs(metrics[place][name] - value) > tolerance * value:
                    said = f"{place} {name} of {peer} is {metrics[place][name]}"
                    raise SystemExit(f"{result['task']}: {said}, not {value}")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


def show(result: dict[str, Any], turns: int) -> None:
    print(f"{result['task']}, {turns} turns, medians (least to largest)")
    for peer, values in result["seconds"].items():
        trained = result["metrics"][peer]["last"]
        said = f"last loss {trained['loss']:.6f}, accuracy {trained['accuracy']:.4f}"
        print(f"  seconds of {peer:<16} {spread(values)}; {said}")
    for peer, values in result["ratios"].items():
        print(f"  {peer + ' / fedferry run':<27} {spread(values)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="TFF's EMNIST layout, HDF5")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--task", choices=list(EPOCHS), action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--simulate", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.simulate:
        return simulate(Settings.from_config(options.simulate).to_config())
    if importlib.util.find_spec("ray") is None:
        return print("no Ray simulation to measure: ray is missing (pip install -e '.[ray]')")
    if not options.data:
        parser.error("--data is missing")
    end_on_signals()
    data = str(Path(options.data).resolve())
    results = []
    with tempfile.TemporaryDirectory() as folder, Loopback(Path(folder)) as loopback:
        start_superlink(loopback)
        for task in options.task or EPOCHS:
            results.append(measure(task, data, options.turns, loopback))
            show(results[-1], options.turns)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    for result in results:
        check(result)


if __name__ == "__main__":
    main()
