"""Weighted federated averaging as a Flower strategy, with TFF's arithmetic."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import INFO, WARNING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from torch import Tensor, nn

from server.aggregation import WeightedMean
from server.cohort import Cohort
from server.directory import Directory
from server.post import error_reason
from server.replies import Claims, only
from settings.errors import InputError, counted, shorten
from tasks.metrics import Metric, Sums, add_sums, finalize
from weights.named import Array, NamedArrays
from weights.optimizers import make_optimizer
from weights.threads import one_thread
from weights.wire import WireError, pack, put, unpack

_REASONS = 100
"""Failed clients of a round whose reasons are kept."""


@dataclass
class Tally:
    """What became of the messages of one round.

    Attributes:
        clients: Those that got a message.
        answered: Clients whose reply was read.
        empty: Clients among them that had no batch of data; their weight is zero.
        non_finite: Clients among them whose update held a NaN or an infinity; weight zero, as in TFF.
        metrics_non_finite: Clients among them whose metrics did, and are left out of the round's.
        update_non_finite: 1 if the mean was not finite, so that the model stayed as it was.
        largest_share: The largest share that one client's update had in the mean.
        failures: Clients whose reply was an error or was refused.
        failed: The first of them -> why.
        late: Clients that had not replied when the round was closed.
        skipped: 1 if too few replied, so that the model stayed as it was.
    """

    clients: Sequence[str] = ()
    answered: int = 0
    empty: int = 0
    non_finite: int = 0
    metrics_non_finite: int = 0
    update_non_finite: int = 0
    largest_share: float = 0.0
    failures: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def asked(self) -> int:
        """Clients that got a message."""
        return len(self.clients)

    def fail(self, client_id: str, reason: str) -> None:
        """Count a client whose reply does not count."""
        self.failures += 1
        if len(self.failed) < _REASONS:
            self.failed[client_id] = reason

    def check(self, what: str) -> None:
        """Raise InputError, which names `what` was asked for, if every client failed."""
        if self.failed and not self.answered:
            client_id, reason = next(iter(self.failed.items()))
            number = self.failures
            all_of_them = "the only client" if number == 1 else f"all {number:,} clients"
            raise InputError(f"{what}: {all_of_them} failed; {client_id}: {reason}")


class WeightedFedAvg(Strategy):
    """`tff.learning.algorithms.build_weighted_fed_avg`.

    The pseudo-gradient is the weighted mean of (initial - trained) over clients; the server optimizer
    subtracts it. A client's non-finite update counts as zero with weight zero; a non-finite mean leaves
    weights and optimizer as they are.

    Args:
        weights: The initial model, all state names.
        trainable: Names that clients train; the rest is only broadcast.
        server_optimizer: Spec of the server optimizer.
        weighting: "examples" or "uniform".
        architecture: Keras `model_config` that clients build the model from; empty: the task's own.
        metrics: The task's metrics, to finalize the sums.
        directory: Which node serves which client.
        cohort: Who takes part in which round.
        min_replies: Replies under which a round leaves the model as it is.
        batch_size: Examples in a client's batch at most, to check claims against; 0: not known.
        max_batches: Batches that a client trains on at most; 0: no bound.
    """

    def __init__(
        self,
        weights: Mapping[str, Array],
        trainable: Sequence[str],
        *,
        server_optimizer: str,
        weighting: str,
        architecture: str,
        metrics: Mapping[str, Metric],
        directory: Directory,
        cohort: Cohort,
        min_replies: int = 1,
        batch_size: int = 0,
        max_batches: int = 0,
    ) -> None:
        self._tensors = {name: torch.from_numpy(array.copy()) for name, array in weights.items()}
        self._trained = {name: nn.Parameter(self._tensors[name]) for name in trainable}
        self.optimizer = make_optimizer(
            server_optimizer, self._trained.values(), "server optimizer"
        )
        self._spec = server_optimizer
        self._weighting = weighting
        self._architecture = architecture
        self._metrics = metrics
        self._directory = directory
        self._cohort = cohort
        self._min_replies = min_replies
        self._claims = Claims(metrics, batch_size, max_batches)
        self._record: ArrayRecord | None = None
        self._sent: list[tuple[str, Message]] = []
        self._mean = WeightedMean(self._trained)
        self._expected = {name: self._tensors[name].numpy() for name in trainable}
        self.tally = Tally()

    @property
    def weights(self) -> NamedArrays:
        """The global model, sharing the strategy's memory."""
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}

    @property
    def arrays(self) -> ArrayRecord:
        """The global model as it goes over the wire; packed once, until it changes."""
        if self._record is None:
            self._record = pack(self.weights)
        return self._record

    def load(self, weights: Mapping[str, Array]) -> None:
        """Overwrite the global model in place."""
        self._record = None
        for name, tensor in self._tensors.items():
            tensor.copy_(torch.from_numpy(weights[name]))

    def summary(self) -> None:
        """Log what the strategy does."""
        log(INFO, "\t├──> Server optimizer: %s", self._spec)
        log(INFO, "\t└──> Weighting: %s", self._weighting)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message a client of the round's cohort."""
        if arrays is not self._record:
            self.load(unpack(arrays, like=self.weights))
        ids = self._cohort.train(server_round)
        on_split = ConfigRecord({**config, "split": "train"})
        return self._messages(MessageType.TRAIN, ids, server_round, arrays, on_split)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """One message a client of the evaluation cohort, on `config["split"]` or the test split."""
        ids = self._cohort.evaluate()
        on_split = ConfigRecord({"split": "test", **config})
        return self._messages(MessageType.EVALUATE, ids, server_round, arrays, on_split)

    def _messages(
        self,
        message_type: str,
        client_ids: Sequence[str],
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
    ) -> list[Message]:
        self._sent = []
        said = {**config, "server-round": server_round, "architecture": self._architecture}
        settings = ConfigRecord(said)
        shared = RecordDict({"arrays": arrays})
        for client_id in client_ids:
            # Copies: what is made anew is checked anew, value by value.
            own = put(settings.copy(), {"client-id": client_id})
            content = put(shared.copy(), {"config": own})
            node_id = self._directory.node_of[client_id]
            self._sent.append((client_id, Message(content, node_id, message_type)))
        self.tally = Tally(client_ids)
        return [message for _, message in self._sent]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one server optimizer step from the replies, consumed one by one."""
        mean = self._mean
        mean.reset()
        totals = _Totals()
        for update, sums in self._read(replies, self._expected, self._claims):
            self.tally.metrics_non_finite += not totals.add(sums)
            weight = sums["num_examples"][0] if self._weighting == "examples" else 1.0
            self.tally.non_finite += not mean.add(update, weight)
        if lost := self.tally.non_finite:
            said = "round %d: updates not finite, which count for nothing: %d"
            log(WARNING, said, server_round, lost)
        if self.tally.answered < self._min_replies:
            self.tally.skipped = 1
            came = counted(self.tally.answered, "reply", "replies")
            said = "round %d is skipped: %s, %d needed at least"
            log(WARNING, said, server_round, came, self._min_replies)
        elif mean.total_weight:
            self.tally.largest_share = mean.largest_weight / mean.total_weight
            with one_thread():
                self._step(mean.mean())
        elif not lost:
            said = "round %d: no client had a batch of data, the model stays as it was"
            log(WARNING, said, server_round)
        return self.arrays, _record(finalize(totals.sums, self._metrics))

    def _step(self, pseudo_gradient: Mapping[str, Tensor] | None) -> None:
        if pseudo_gradient is None:
            self.tally.update_non_finite = 1
            log(WARNING, "the aggregated update is not finite: the model stays as it was")
            return
        for name, parameter in self._trained.items():
            parameter.grad = pseudo_gradient[name]
        self._record = None
        self.optimizer.step()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Finalized metrics over the replies' sums."""
        totals = _Totals()
        # Batches of evaluation have a bound of their own, but here nobody's claim has any weight.
        claims = replace(self._claims, max_batches=0)
        for _, sums in self._read(replies, {}, claims):
            self.tally.metrics_non_finite += not totals.add(sums)
        return _record(finalize(totals.sums, self._metrics))

    def _read(
        self, replies: Iterable[Message], expected: NamedArrays, claims: Claims
    ) -> Iterator[tuple[NamedArrays, Sums]]:
        """Updates and metric sums of the replies that hold what they should; the rest is tallied."""
        waiting = {
            message.metadata.message_id: (client_id, message.metadata.dst_node_id)
            for client_id, message in self._sent
        }
        for reply in replies:
            if reply.metadata.reply_to_message_id not in waiting:
                log(WARNING, "a reply that answers no open message was dropped")
                continue
            client_id, node = waiting.pop(reply.metadata.reply_to_message_id)
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                if reply.metadata.src_node_id != node:
                    raise WireError(f"node {reply.metadata.src_node_id} answered in its place")
                sums = claims.sums(reply.content)
                update = unpack(only(reply.content, ArrayRecord), like=expected) if sums else {}
            except WireError as error:
                reason = f"node {node}: {shorten(str(error))}"
                self.tally.fail(client_id, reason)
                log(WARNING, "client %s failed: %s", client_id, reason)
                continue
            self.tally.answered += 1
            if sums:
                yield update, sums
            else:
                self.tally.empty += 1
        self.tally.late = [client_id for client_id, _ in waiting.values()]


class _Totals:
    """Metric sums over clients; those of a client that are not finite count only where all are such."""

    def __init__(self) -> None:
        self._finite: Sums = {}
        self._others: Sums = {}

    def add(self, sums: Sums) -> bool:
        """Add one client's sums, and say whether they were finite."""
        finite = all(math.isfinite(value) for values in sums.values() for value in values)
        add_sums(self._finite if finite else self._others, sums)
        return finite

    @property
    def sums(self) -> Sums:
        """The totals."""
        return self._finite or self._others


def _record(metrics: Mapping[str, float]) -> MetricRecord | None:
    return MetricRecord(dict(metrics)) if metrics else None
