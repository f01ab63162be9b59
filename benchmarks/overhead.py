"""What a round costs outside of training: rounds of clients that do nothing, by parts.

    python benchmarks/overhead.py                       1,000 parameters and 16 MB, 10 clients
    python benchmarks/overhead.py --profile 4000000     where the time goes, function by function

A client replies with the arrays that it was sent, as its update, so that everything but training happens:
broadcast, delivery, checks, the weighted mean, the server's step, metrics; then logs, and copies for the thread that
writes them and the checkpoint.
"""

import argparse
import cProfile
import json
import logging
import os
import pstats
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

import settings.threads  # noqa: F401  as our command does, before torch

# isort: split
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from server.record import Recorder
from server.rounds import Federation
from server.saver import Saver
from settings.memory import keep_freed
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.data import Examples
from tasks.stream import Batch, Prepared
from tasks.task import Task

LAYERS = 8
logging.getLogger("flwr").setLevel(logging.WARNING)


def flat(size: int = 1000) -> Task:
    """A task that nobody trains: `size` parameters in `LAYERS` tensors."""

    def model() -> nn.Module:
        return nn.ParameterList(torch.zeros(size // LAYERS) for _ in range(LAYERS))

    def prepare(examples: Examples) -> Prepared:
        return Prepared(torch.zeros(0), torch.zeros(0))

    def loss(outputs: Tensor, batch: Batch) -> Tensor:
        return outputs

    return Task(name="flat", model=model, prepare=prepare, loss=loss)


def idle_app(clients: int) -> ClientApp:
    """A ClientApp that announces clients, and answers with what it was sent."""
    app = ClientApp()

    @app.query()
    def announce(message: Message, context: Context) -> Message:
        ids = [f"client_{index:04d}" for index in range(clients)]
        said = ConfigRecord({"client-ids": ids, "partition-id": 0, "num-partitions": 1})
        return Message(RecordDict({"clients": said}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sums = {"loss": [1.0, 1.0], "num_examples": [1.0], "num_batches": [1.0]}
        content = RecordDict(
            {
                "arrays": message.content["arrays"],
                "metrics": MetricRecord({"num-examples": 1, **sums}),
            }
        )
        return Message(content, reply_to=message)

    return app


def measure(size: int, clients: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of a round's parts over the rounds after the first few."""
    settings = Settings(
        task=f"overhead:flat:size={size}",
        data="none",
        cohort=str(clients),
        rounds=rounds,
        eval_every=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(**{**vars(settings), "logdir": f"{folder}/run"})
        grid = InProcessGrid(idle_app(clients), settings.to_config())
        federation = Federation(settings, grid)
        times: dict[str, list[float]] = {"round": [], "leaving": [], "writing": []}
        recorder = Recorder(federation.settings, Path(folder), [], {})
        with Saver(Path(folder) / "checkpoints", recorder, federation.history) as saver:
            for _ in range(rounds):
                started = time.perf_counter()
                record = federation.next()
                done = time.perf_counter()
                federation._leave(saver, record, {})
                left = time.perf_counter()
                saver.wait()  # in a run, the next round is under way meanwhile
                parts = (done - started, left - done, time.perf_counter() - left)
                for part, seconds in zip(times, parts, strict=True):
                    times[part].append(1e3 * seconds)
    return {part: statistics.median(values[3:]) for part, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--profile", type=int, metavar="PARAMETERS", default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed()  # as both apps do
    results = {}
    for size in [options.profile] if options.profile else [1000, 4_000_000]:
        profiler = cProfile.Profile()
        if options.profile:
            profiler.enable()
        results[size] = measure(size, options.clients, options.rounds)
        profiler.disable()
        said = ", ".join(f"{part} {ms:.2f} ms" for part, ms in results[size].items())
        print(f"{size:>9,} parameters, {options.clients} clients: {said}")
        if options.profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
