"""What a reply must be before it touches the model: everything in it is only what a client claims."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from settings.errors import counted, few
from tasks.metrics import ALWAYS, Metric, Sums
from weights.wire import Record, WireError, records


def only(content: RecordDict, kind: type[Record]) -> Record:
    """The one record of its kind that a reply must hold; WireError otherwise."""
    found = records(content, kind)
    if len(found) != 1:
        raise WireError(f"the reply holds {len(found)} records of kind {kind.__name__}, not one")
    return next(iter(found.values()))


def refusal(reply: Message, why: WireError) -> Message:
    """The error that takes the place of a reply that is not as it should be."""
    error = Error(ErrorCode.UNKNOWN, str(why))
    message: Message = Message(metadata=reply.metadata, error=error)  # type: ignore[call-overload]
    return message


@dataclass
class Claims:
    """Reads what replies claim: metric sums, and for how many examples they stand.

    Attributes:
        metrics: The task's.
        batch_size: Examples in a batch at most; 0: not known.
        max_batches: Batches that a client takes at most; 0: no bound.
    """

    metrics: Mapping[str, Metric]
    batch_size: int = 0
    max_batches: int = 0
    _num_sums: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        own = {name: metric.num_sums for name, metric in self.metrics.items()}
        self._num_sums = own | ALWAYS

    def sums(self, content: RecordDict) -> Sums:
        """The metric sums of a reply, empty for a client without data.

        Raises:
            WireError: Sums that are missing, unknown or no lists of numbers, or numbers of examples and
                batches that cannot be.
        """
        said = dict(only(content, MetricRecord).items())
        if said.get("num-examples") == 0:
            return {}
        self._check_counts(said)
        if odd := (said.keys() - {"num-examples"}) ^ self._num_sums.keys():
            raise WireError(f"metrics missing or unknown: {few(sorted(odd), shown=3)}")
        return {name: self._checked(name, said[name]) for name in self._num_sums}

    def _checked(self, name: str, values: object) -> list[float]:
        if not isinstance(values, list):
            raise WireError(f"metric {name} is not a list of sums, but {type(values).__name__}")
        if len(values) != self._num_sums[name]:
            raise WireError(
                f"metric {name} has {counted(len(values), 'sum')}, not {self._num_sums[name]}"
            )
        return [float(value) for value in values]

    def _check_counts(self, said: Mapping[str, object]) -> None:
        """Whole numbers that agree with each other and with what the server asked for.

        The weight of an update is what its client claims, and this is all that bounds it: `--max-batches`
        bounds it absolutely, `--weighting uniform` does without.
        """
        examples, batches = (_count(said.get(name)) for name in ("num_examples", "num_batches"))
        if examples is None:
            raise WireError("the reply does not say how many examples it stands for")
        if "num-examples" in said and said["num-examples"] != examples:
            stands = counted(examples, "example")
            raise WireError(f"it stands for {stands}, or {said['num-examples']}")
        if batches is None:
            raise WireError("the reply does not say how many batches (num_batches) it stands for")
        if self.max_batches and batches > self.max_batches:
            claimed = counted(batches, "batch", "batches")
            raise WireError(f"it claims {claimed}: more than --max-batches allows")
        if self.batch_size and examples > batches * self.batch_size:
            raise WireError(
                f"it claims {counted(examples, 'example')} in "
                f"{counted(batches, 'batch', 'batches')} of {self.batch_size} at most"
            )


def _count(values: object) -> int | None:
    """A positive whole number from a list of one sum; None for anything else."""
    if not isinstance(values, list) or len(values) != 1:
        return None
    value = values[0]
    return int(value) if 0 < value < 2**53 and value == int(value) else None
