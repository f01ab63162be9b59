"""The training of Flower's own strategies, which take trained models, for model updates."""

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from server.replies import only, refusal
from server.strategy import Tally
from weights.named import NamedArrays, is_finite
from weights.wire import WireError, claimed, pack, records, unpack


class TrainedModels:
    """Lets FedAvg, FedAdam, FedMedian, ... train on what clients send to `server.strategy.WeightedFedAvg`.

    Such a strategy gets (model - update), the whole model and finite, and no reply of a client without data.

    Args:
        strategy: Takes trained models.
        trained: Names of the arrays that clients send; None: all that are broadcast.

    Attributes:
        tally: Of the round's replies only those are counted that are refused here.
    """

    def __init__(self, strategy: Strategy, trained: Sequence[str] | None) -> None:
        self._strategy = strategy
        self._trained = trained
        self._model: NamedArrays = {}
        self.tally = Tally()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages."""
        self._model = unpack(arrays, like=claimed(arrays))
        self.tally = Tally()
        return self._strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The strategy's aggregate, in the model's dtypes: FedAdam gives float64 for float32."""
        arrays, metrics = self._strategy.aggregate_train(server_round, self._models(replies))
        if arrays is None:
            return None, metrics
        wide = unpack(arrays, like=claimed(arrays))
        return pack({n: a.astype(self._model[n].dtype) for n, a in wide.items()}), metrics

    def _models(self, replies: Iterable[Message]) -> Iterator[Message]:
        """The replies with trained models, one by one; those that are refused become errors."""
        for reply in replies:
            try:
                if reply.has_error() or self._put_model(reply):
                    yield reply
            except WireError as error:
                self.tally.failures += 1
                yield refusal(reply, error)

    def _put_model(self, reply: Message) -> bool:
        """Put the trained model into a reply; False for a client without data."""
        record = only(reply.content, ArrayRecord)
        if not record:
            return False
        names = self._model if self._trained is None else self._trained
        update = unpack(record, like={name: self._model[name] for name in names})
        if not is_finite(update):
            raise WireError("the update is not finite")
        model = {n: a - update[n] if n in update else a for n, a in self._model.items()}
        [place] = records(reply.content, ArrayRecord)
        reply.content[place] = pack(model)
        return True
