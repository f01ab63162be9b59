"""Peak memory of the server while 10, 50 or 200 replies of a 16 MB model come back in a round.

    python benchmarks/server_memory.py

What is measured is the server alone: Flower's own HttpGrid with the round loop, the meter, the aggregation, the logs
and the checkpoint, which is written while the next round is under way, each number of replies in a fresh process.
In place of the SuperLink stands a stub that has every reply ready at once, which is the worst case, and hands out
a new copy of its bytes for every pull, as a network would. There are no clients.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from torch import nn

from client.mods import compress
from server.record import Recorder
from server.rounds import Federation
from server.saver import Saver
from settings.memory import keep_freed, share_freed
from settings.schema import Settings
from tasks.data import InMemory
from tasks.task import Task
from weights.wire import pack

PARAMETERS = 4_000_000
REPLIES = (10, 50, 200)
NODE = 7
SUMS = {"loss": [8.0, 8.0], "num_examples": [8.0], "num_batches": [1.0]}
UPDATE = np.random.default_rng(0).normal(0, 1e-4, (2000, PARAMETERS // 2000)).astype(np.float32)

TASK = Task(
    name="big",
    model=lambda: nn.Linear(PARAMETERS // 2000, 2000, bias=False),
    open=lambda path, split: InMemory({}),
    prepare=lambda examples: None,  # type: ignore[arg-type, return-value]
    loss=lambda outputs, batch: torch.zeros(()),
    metrics={},
    client_optimizer="sgd:lr=0.1",
)


class Stub:
    """A SuperLink's Runtime API whose one node answers at once, for many clients."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._sent: dict[str, Message] = {}
        self._contents: dict[str, bytes] = {}
        self._answer: RecordDict | None = None

    def GetNodes(self, request: Any) -> Any:
        return SimpleNamespace(nodes=[SimpleNamespace(node_id=NODE)])

    def PushMessages(self, request: Any) -> Any:
        for proto in request.messages_list:
            self._sent[proto.metadata.message_id] = message_from_proto(proto)
        ids = [proto.metadata.message_id for proto in request.messages_list]
        return SimpleNamespace(message_ids=ids, objects_to_push=[], session_id="")

    def PushObject(self, request: Any) -> Any:
        raise AssertionError("no object was asked for")

    def PullMessages(self, request: Any) -> Any:
        replies = [self._reply(self._sent.pop(i)) for i in request.message_ids if i in self._sent]
        return SimpleNamespace(
            messages_list=[proto for proto, _ in replies],
            message_object_trees=[tree for _, tree in replies],
        )

    def PullObject(self, request: Any) -> Any:
        content = bytes(bytearray(self._contents[request.object_id]))
        return SimpleNamespace(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self._contents.pop(request.message_object_id)

    def _reply(self, message: Message) -> tuple[Any, Any]:
        reply = Message(self._content(message), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        for object_id, item in get_all_nested_objects(reply).items():
            if object_id not in self._contents:
                self._contents[object_id] = item.deflate()
        bare = Message(RecordDict(), reply_to=message)
        bare.metadata.__dict__["_message_id"] = reply.object_id
        return message_to_proto(bare), get_object_tree(reply)

    def _content(self, message: Message) -> RecordDict:
        if message.metadata.message_type == "query":
            ids = [f"c{index:03}" for index in range(self._clients)]
            said = ConfigRecord({"client-ids": ids, "partition-id": 0, "num-partitions": 1})
            return RecordDict({"clients": said})
        if self._answer is None:
            raise RuntimeError("no answer has been prepared")
        return self._answer

    def prepare(self, message: Message) -> None:
        """Encode the one update that every client answers with, as the first message asks."""

        def train(message: Message, context: Context) -> Message:
            arrays = pack({"weight": UPDATE})
            metrics = MetricRecord({"num-examples": 8, **SUMS})
            return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

        context = Context(1, NODE, {}, RecordDict(), {})
        self._answer = compress(message, context, train).content


class StubbedGrid(HttpGrid):
    """Flower's grid, over the stub."""

    def __init__(self, stub: Stub) -> None:
        super().__init__(token="none")
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.set_run(Run.create_empty(1))
        self._stub = stub

    @property
    def _runtime_client(self) -> Any:
        return self._stub

    def push_messages(self, messages: Any) -> Any:
        """Push, and let the stub see what the clients are asked for."""
        sent = list(messages)
        if sent[0].metadata.message_type == "train":
            ids = super().push_messages(sent)
            self._stub.prepare(sent[0])
            return ids
        return super().push_messages(sent)


def peak(replies: int, aggregator: str, rounds: int) -> Iterator[float]:
    """Peak memory in MB after discovery, and after the rounds."""
    share_freed()  # as the ServerApp does
    keep_freed()
    settings = Settings(
        task="benchmarks.server_memory:TASK",
        data="none",
        cohort="all",
        aggregator=aggregator,
        eval_every=0,
        server_optimizer="adam:lr=0.01",
    )
    federation = Federation(settings, StubbedGrid(Stub(replies)))
    yield resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        recorder = Recorder(federation.settings, Path(place), [], {})
        with Saver(Path(place) / "checkpoints", recorder, federation.history) as saver:
            for _ in range(rounds):
                record = federation.next()
                assert record.comm["answered"] == replies, record.comm
                federation._leave(saver, record, {})
    print(f"{(time.perf_counter() - started) / rounds:.1f} s a round", file=sys.stderr)
    yield resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure each number of replies in a process of its own, and say how much memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aggregator", default="mean", choices=("mean", "robust", "compression"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(*(f"{size:.1f}" for size in peak(options.one, options.aggregator, options.rounds)))
        return
    peaks = {}
    print(f"{options.aggregator}: {PARAMETERS * 4 / 1e6:.0f} MB model, {options.rounds} rounds")
    for replies in REPLIES:
        command = [sys.executable, "-m", "benchmarks.server_memory", "--one", str(replies)]
        command += ["--aggregator", options.aggregator, "--rounds", str(options.rounds)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        before, peaks[replies] = map(float, said.split())
        print(f"{replies:4} replies: {before:.0f} MB before, {peaks[replies]:.0f} MB at most")
    growth = peaks[max(REPLIES)] - peaks[min(REPLIES)]
    print(f"growth from {min(REPLIES)} to {max(REPLIES)} replies: {growth:.1f} MB")


if __name__ == "__main__":
    main()
