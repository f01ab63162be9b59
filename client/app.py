"""The Flower ClientApp: message in, local work, reply out."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from client.crew import Crew, Work
from client.data import Client, population, prepared
from client.group import can_join, join
from client.lookahead import Lookahead
from client.mods import compress, reply_again
from client.time_limit import time_limit
from client.together import update_together
from client.update import Result, local_update
from settings.errors import InputError, unknown
from settings.memory import keep_freed
from settings.schema import Settings, names_in
from settings.streams import mistakes_in_one_line
from tasks.catalogue import load_task
from tasks.data import Population, Split
from tasks.evaluation import evaluate
from tasks.metrics import Sums
from tasks.stream import Batch, Prepared, Stream, client_seed
from weights.named import NamedArrays, arrays_of, load_arrays
from weights.wire import pack, records, unpack

_NODE_CONFIG = {"data", "client-ids", "partition-id", "num-partitions"}

mistakes_in_one_line()
keep_freed()
app = ClientApp()
lookahead = Lookahead()
_crew = Crew()


@app.query()
def announce(message: Message, context: Context) -> Message:
    """Tell which clients' data this node holds, and which share of the population that is."""
    partition, partitions = _share(context)
    with time_limit(message.metadata.ttl):
        served = _served(_settings(context), context)
    clients = ConfigRecord(
        {
            "client-ids": served,
            "partition-id": partition,
            "num-partitions": partitions,
        }
    )
    return Message(RecordDict({"clients": clients}), reply_to=message)


@app.train(mods=[reply_again, compress])
def train(message: Message, context: Context) -> Message:
    """Train the broadcast model on one client's examples; reply with the model update."""
    result = lookahead.take(message)
    if result is None:
        with time_limit(message.metadata.ttl):
            result = _trained(message, _Request(message, context, default_split="train"))
    return _reply(message, *result)


def _trained(message: Message, request: "_Request") -> Result:
    """The client's model update and metric sums, trained together with its peers where that is possible."""
    settings, task = request.settings, request.task
    optimizer = settings.client_optimizer or task.client_optimizer
    stream = request.stream(settings.local_epochs, settings.max_batches, settings.shuffle)
    joins = settings.precision == "float32" and can_join(task, request.model, optimizer)
    if joins and lookahead.announced(message):
        result = _with_peers(message, request, stream, optimizer)
        if result is not None:
            return result

    def work(model: nn.Module, batches: Iterable[Batch]) -> Result:
        return local_update(task, model, request.weights, batches, optimizer, settings.precision)

    return _result(message, request, stream, work)


def _with_peers(
    message: Message, request: "_Request", stream: Stream, optimizer: str
) -> Result | None:
    """The client's result; those of its peers are kept for when they are asked. None: it must train alone."""
    _crew.arrange(request.settings)
    read = functools.partial(request.client, stream=stream)
    together, failed = join(message, lookahead.peers(), read, request.model)
    lookahead.keep(failed)
    if len(together) < 2:
        return None
    task, model, clients = request.task, request.model, [*together.values()]
    try:
        mine, *others = update_together(task, model, request.weights, clients, optimizer, _crew)
    except TimeoutError:
        raise
    except Exception:
        # Which of them it comes from shows when each trains alone.
        return None
    lookahead.keep(failed | dict(zip([*together][1:], others, strict=True)))
    return mine


@app.evaluate()
def evaluate_model(message: Message, context: Context) -> Message:
    """Evaluate the broadcast model on one client's examples of the split that the message names."""
    with time_limit(message.metadata.ttl):
        request = _Request(message, context, default_split="test")

        def work(model: nn.Module, batches: Iterable[Batch]) -> Result:
            load_arrays(model, request.weights, "the broadcast model")
            return {}, evaluate(request.task, model, batches)

        stream = request.stream(1, request.settings.eval_batches, shuffles=False)
        result = _result(message, request, stream, work)
    return _reply(message, *result)


def _result(message: Message, request: "_Request", stream: Stream, work: Work) -> Result:
    """One client's result: beside those of the clients behind it, where it is known who they are."""
    if not lookahead.announced(message):
        return work(request.model, request.batches(message, stream))
    _crew.arrange(request.settings)
    read = functools.partial(request.batches, stream=stream)
    return _crew.result(message, lookahead.peers(), request.model, read, work)


class _Request:
    """What a message asks for: the task, the model, the broadcast weights, and clients' batches.

    Strategies of Flower's own name neither client nor split: then it is the node's only client.
    """

    def __init__(self, message: Message, context: Context, default_split: Split) -> None:
        self.settings = _settings(context)
        config = _config(message)
        self._context = context
        self._split = cast(Split, config.get("split", default_split))
        self._round = cast(int, config["server-round"])
        self.task = load_task(self.settings.task)
        self.model = _model(self.settings.task, str(config.get("architecture", "")))
        sent = records(message.content, ArrayRecord)["arrays"]
        self.weights = unpack(sent, like=arrays_of(self.model))

    def stream(self, local_epochs: int, max_batches: int, shuffles: bool) -> Stream:
        """How a client's examples become batches."""
        return Stream(
            batch_size=self.settings.batch_size or self.task.batch_size,
            local_epochs=local_epochs,
            shuffle_buffer=self.task.shuffle_buffer if shuffles else 0,
            drop_remainder=self.task.drop_remainder,
            max_batches=max_batches,
        )

    def batches(self, message: Message, stream: Stream) -> Iterator[Batch]:
        """The batches of the client that a message names; torch is seeded for it."""
        client_id = self._client_id(message)
        if self._split == "test" and client_id not in self._population:
            return iter(())
        seed = self._seed(client_id)
        return stream.batches(self._prepared(client_id, seed), np.random.default_rng(seed))

    def client(self, message: Message, stream: Stream) -> Client:
        """The same, for training with others."""
        client_id = self._client_id(message)
        seed = self._seed(client_id)
        examples = self._prepared(client_id, seed)
        return Client(examples, stream.chosen(len(examples), np.random.default_rng(seed)))

    def _client_id(self, message: Message) -> str:
        named = _config(message).get("client-id")
        return str(named or _only_client(self.settings, self._context))

    @property
    def _population(self) -> Population:
        return population(self.settings.task, self.settings.data, self._split)

    def _prepared(self, client_id: str, seed: int) -> Prepared:
        settings = self.settings
        return prepared(settings.task, settings.data, self._split, client_id, seed)

    def _seed(self, client_id: str) -> int:
        """The same for the same seed, round and client, wherever it runs."""
        return client_seed(self.settings.seed, self._round, client_id)


def _config(message: Message) -> ConfigRecord:
    return records(message.content, ConfigRecord)["config"]


def _settings(context: Context) -> Settings:
    """The run's settings, with this node's own `data` where its node config has one."""
    settings = Settings.from_config(context.run_config)
    own = context.node_config.get("data")
    return settings if own is None else replace(settings, data=str(own))


def _served(settings: Settings, context: Context) -> list[str]:
    """Ids of the clients that this node serves: those it names, or its share of the population."""
    ids = list(population(settings.task, settings.data, "train").client_ids)
    partition, partitions = _share(context)
    named = names_in(str(context.node_config.get("client-ids", "")))
    for name in named:
        if name not in ids:
            raise unknown("client id in the node config", name, ids)
    return named or ids[partition::partitions]


def _share(context: Context) -> tuple[int, int]:
    """`partition-id` and `num-partitions` of the node config; 0 of 1 for a node without them."""
    config = context.node_config
    odd = set(config) - _NODE_CONFIG
    if odd:
        raise unknown("node config key", min(odd), sorted(_NODE_CONFIG))
    if "client-ids" in config and "num-partitions" in config:
        raise InputError(
            "a node config has client-ids or partition-id and num-partitions, not both"
        )
    partition = int(config.get("partition-id", 0))
    partitions = int(config.get("num-partitions", 1))
    if not 0 <= partition < partitions:
        raise InputError(f"partition-id {partition} must be under num-partitions {partitions}")
    return partition, partitions


def _only_client(settings: Settings, context: Context) -> str:
    served = _served(settings, context)
    if len(served) != 1:
        raise InputError(
            f"the message names no client and this node serves {len(served)}: with a strategy of "
            "Flower's own, a node serves one client (num-partitions = number of clients)"
        )
    return served[0]


def _reply(message: Message, update: NamedArrays, sums: Sums) -> Message:
    """One array record and one metric record; `num-examples` is 0 for a client without a batch."""
    metrics = MetricRecord({"num-examples": int(sums["num_examples"][0]) if sums else 0})
    for name, values in sums.items():
        metrics[name] = values
    content = RecordDict({"arrays": pack(update), "metrics": metrics})
    return Message(content, reply_to=message)


@functools.lru_cache(maxsize=2)
def _model(task: str, architecture: str) -> nn.Module:
    return load_task(task).build(architecture)
