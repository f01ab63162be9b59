"""Weighted federated averaging as a Flower strategy, with TFF's arithmetic."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log
from torch import Tensor, nn

from server.aggregation import WeightedMean
from server.cohort import Cohort, Directory
from server.exchange import error_reason
from tasks.metrics import Metric, Sums, add_sums, finalize
from weights.named import Array, NamedArrays, is_finite
from weights.optimizers import make_optimizer
from weights.wire import WireError, pack, unpack

Record = TypeVar("Record")


@dataclass
class Tally:
    """What became of the messages of one round.

    Attributes:
        asked: Clients that got a message.
        answered: Clients whose reply was read.
        empty: Clients among them that had no batch of data; their weight is zero.
        non_finite: Clients among them whose update held a NaN or an infinity; weight zero, as in TFF.
        update_non_finite: 1 if the mean was not finite, so that the model stayed as it was.
        failed: Client -> why its reply was an error or was refused.
        late: Clients that had not replied when the round was closed.
        skipped: 1 if too few replied, so that the model stayed as it was.
    """

    asked: int = 0
    answered: int = 0
    empty: int = 0
    non_finite: int = 0
    update_non_finite: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    late: int = 0
    skipped: int = 0


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
        self._sent: list[tuple[str, Message]] = []
        self.tally = Tally()

    @property
    def weights(self) -> NamedArrays:
        """The global model, sharing the strategy's memory."""
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}

    def load(self, weights: Mapping[str, Array]) -> None:
        """Overwrite the global model in place."""
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
        for client_id in client_ids:
            settings = ConfigRecord(
                {
                    **config,
                    "server-round": server_round,
                    "client-id": client_id,
                    "architecture": self._architecture,
                }
            )
            content = RecordDict({"arrays": arrays, "config": settings})
            node_id = self._directory.node_of[client_id]
            self._sent.append((client_id, Message(content, node_id, message_type)))
        self.tally = Tally(asked=len(client_ids))
        return [message for _, message in self._sent]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one server optimizer step from the replies, consumed one by one."""
        mean = WeightedMean(self._trained)
        totals: Sums = {}
        for update, sums in self._read(replies, self._trained):
            add_sums(totals, sums)
            if not is_finite(update):
                self.tally.non_finite += 1
                continue
            examples = sums["num_examples"][0]
            mean.add(update, examples if self._weighting == "examples" else 1.0)
        if self.tally.answered < self._min_replies:
            self.tally.skipped = 1
            said = (server_round, self.tally.answered, self._min_replies)
            log(WARNING, "round %d is skipped: %d replies, at least %d are needed", *said)
        elif mean.total_weight:
            self._step(mean.mean())
        return pack(self.weights), _record(finalize(totals, self._metrics))

    def _step(self, pseudo_gradient: Mapping[str, Tensor]) -> None:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in pseudo_gradient.values()):
            self.tally.update_non_finite = 1
            log(WARNING, "the aggregated update is not finite: the model stays as it was")
            return
        for name, parameter in self._trained.items():
            parameter.grad = pseudo_gradient[name]
        self.optimizer.step()

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Finalized metrics over the replies' sums."""
        totals: Sums = {}
        for _, sums in self._read(replies, {}):
            add_sums(totals, sums)
        return _record(finalize(totals, self._metrics))

    def _read(
        self, replies: Iterable[Message], like: Mapping[str, Tensor]
    ) -> Iterator[tuple[NamedArrays, Sums]]:
        """Updates and metric sums of the replies that hold what they should; the rest is tallied."""
        expected = {name: tensor.detach().numpy() for name, tensor in like.items()}
        waiting = {message.metadata.message_id: client_id for client_id, message in self._sent}
        widths = dict.fromkeys(self._metrics, 0)
        widths |= {"loss": 2, "num_examples": 1, "num_batches": 1}
        for reply in replies:
            client_id = waiting.pop(reply.metadata.reply_to_message_id, None)
            if client_id is None:
                log(WARNING, "a reply that answers no open message was dropped")
                continue
            try:
                if reply.has_error():
                    raise WireError(error_reason(reply))
                sums = _read_sums(reply.content)
                _check_sums(sums, widths)
                arrays = only(reply.content.array_records)
                update = unpack(arrays, like=expected) if sums else {}
            except WireError as error:
                reason = f"node {reply.metadata.src_node_id}: {error}"
                self.tally.failed[client_id] = reason
                log(WARNING, "client %s failed: %s", client_id, reason)
                continue
            self.tally.answered += 1
            if sums:
                yield update, sums
            else:
                self.tally.empty += 1
        self.tally.late = len(waiting)


def _read_sums(content: RecordDict) -> Sums:
    """The metric sums of a reply, empty for a client without data.

    Raises:
        WireError: Sums that are missing, or are not lists of numbers.
    """
    record = only(content.metric_records)
    if record.get("num-examples") == 0:
        return {}
    sums: Sums = {}
    for name, values in record.items():
        if name != "num-examples":
            if not isinstance(values, list):
                raise WireError(f"metric {name} is not a list of sums, but {values!r}")
            sums[name] = [float(value) for value in values]
    counted = sums.get("num_examples", [])
    if len(counted) != 1 or not 0 < counted[0] < math.inf:
        raise WireError("the reply does not say how many examples it stands for")
    return sums


def _check_sums(sums: Sums, widths: dict[str, int]) -> None:
    """Hold a reply's sums against `widths`, how many each metric has; 0 until the first reply says."""
    odd = set(sums) ^ set(widths) if sums else set()
    if odd:
        raise WireError(f"metrics missing or unknown: {', '.join(sorted(odd))}")
    for name, values in sums.items():
        if len(values) != (widths[name] or max(1, len(values))):
            raise WireError(f"metric {name} has {len(values)} sums, not {max(1, widths[name])}")
    widths |= {name: len(values) for name, values in sums.items()}


def only(records: Mapping[str, Record]) -> Record:
    """The one record of its kind that a reply must hold; WireError otherwise."""
    if len(records) != 1:
        raise WireError(f"the reply holds {len(records)} records of a kind, not one")
    return next(iter(records.values()))


def _record(metrics: Mapping[str, float]) -> MetricRecord | None:
    return MetricRecord(dict(metrics)) if metrics else None
