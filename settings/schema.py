"""The settings of a run: one schema for the command's flags, Flower's run config and the docs."""

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from settings.errors import InputError, unknown

Value = str | int | float | bool


def option(default: Value, help: str, *, metavar: str = "", choices: tuple[str, ...] = ()) -> Any:
    """A field of `Settings`: `help` says its unit, and what an empty or zero value means."""
    return field(default=default, metadata={"help": help, "metavar": metavar, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What a run is: every field is a flag of `fedferry run` and a key of Flower's run config.

    Flower's run config knows no None, so an empty string or a zero means "not given".
    """

    task: str = option("shakespeare", "the task: NAME[:key=value,...] or module:attribute")
    data: str = option(
        "sample",
        "TFF client data (.h5, .sqlite, .sqlite.lzma); `tff`: what `fedferry download` fetched; "
        "`hf:NAME`: flwrlabs/shakespeare or flwrlabs/femnist from Hugging Face; "
        "`sample`: the embedded data, offline",
        metavar="PATH|tff|hf:NAME|sample",
    )
    init: str = option(
        "",
        "checkpoint to start from (Keras or fedferry's .safetensors; `dickens`: downloaded); it decides the model's "
        "architecture. Without it: the task's own checkpoint (shakespeare: Dickens) or model",
        metavar="CHECKPOINT",
    )
    rounds: int = option(10, "rounds of federated training")
    cohort: str = option("10", "clients a round, sampled without replacement", metavar="N|all")
    over_select: float = option(
        1.0, "ask this many times --cohort clients, and close the round when --cohort answered"
    )
    deadline: int = option(3600, "seconds after which a round closes without what has not come")
    min_replies: int = option(1, "replies under which a round leaves the model as it is")
    client_ids: str = option(
        "",
        "train exactly these clients in every round (empty: a sample of --cohort)",
        metavar="A,B,...",
    )
    min_available_nodes: int = option(
        1, "nodes to wait for before the first round (nodes with a partition-id say it themselves)"
    )
    local_epochs: int = option(1, "passes over a client's examples in a round")
    batch_size: int = option(0, "examples in a batch (0: the task's own)")
    max_batches: int = option(0, "batches a client takes in a round at most (0: all)")
    shuffle: bool = option(True, "shuffle a client's examples (off: file order)")
    client_optimizer: str = option(
        "", "NAME[:key=value,...] (empty: the task's own), for instance sgd:lr=0.02", metavar="SPEC"
    )
    server_optimizer: str = option(
        "sgd:lr=1.0",
        "NAME[:key=value,...]: sgd, adam, adagrad, yogi, rmsprop with TFF's arithmetic, or torch.CLASS",
        metavar="SPEC",
    )
    precision: str = option(
        "float32",
        "what local training multiplies in; bf16: bfloat16 products, while weights, updates, recurrent "
        "states and evaluation stay float32 (fast on CPUs with AVX-512 BF16 or AMX, slow on others)",
        choices=("float32", "bf16"),
    )
    workers: int = option(
        0,
        "clients that a simulation works on at once, each on its own core; the model is the same at any "
        "number (0: as many as there are cores)",
    )
    weighting: str = option(
        "examples", "a client's weight in the mean", choices=("examples", "uniform")
    )
    aggregator: str = option(
        "mean",
        "mean; robust: with adaptive zeroing and clipping; compression: robust and a lossy codec",
        choices=("mean", "robust", "compression"),
    )
    codec: str = option(
        "",
        "NAME[:key=value,...] for model updates: identity, uniform, step, eden, topk, float16, "
        "bfloat16, adaptive:budget=BYTES (empty: the aggregator's own)",
        metavar="SPEC",
    )
    broadcast_codec: str = option(
        "identity", "the same for the model on its way to the clients", metavar="SPEC"
    )
    eval_every: int = option(1, "rounds between evaluations on held-out data (0: none)")
    evaluation: str = option(
        "federated",
        "who evaluates: the clients, or the server on the same clients' held-out data",
        choices=("federated", "centralised"),
    )
    eval_cohort: str = option(
        "",
        "clients that evaluate, drawn once (empty: as many as --cohort, or --client-ids)",
        metavar="N|all",
    )
    eval_batches: int = option(0, "batches a client evaluates on at most (0: all)")
    seed: int = option(0, "seed of the initial model, the cohorts and the shuffling")
    logdir: str = option(
        "", "folder of TensorBoard logs and checkpoints (empty: runs/TASK-TIME)", metavar="DIR"
    )
    save: str = option(
        "",
        "write the final model here: .safetensors, or a copy of the Keras file it started from",
        metavar="FILE",
    )
    resume: bool = option(False, "go on from the last checkpoint in --logdir")
    json: str = option("", "write settings and every round's metrics here", metavar="FILE")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if type(value) is not item.type and not (item.type is float and type(value) is int):
                quoted = f": write '{value}'" if item.type is str and type(value) is int else ""
                raise InputError(
                    f"setting {key_of(item)} must be {item.type.__name__}, not {value!r}{quoted}"  # type: ignore[union-attr]
                )
            if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
                raise InputError(f"{flag(item)} {value!r} is not UTF-8")
            choices = item.metadata["choices"]
            if choices and value not in choices:
                raise unknown(flag(item), value, choices)
            if value == "" != item.default:
                raise InputError(
                    f"{flag(item)} must be {item.metadata['metavar'] or 'a name'}, not ''"
                )
            if item.metadata["metavar"] == "FILE" and value.endswith("/"):
                raise InputError(f"{flag(item)} {value} is a folder's name, not a file's")
            if isinstance(value, int | float) and value < 0:
                raise InputError(f"{flag(item)} must not be negative, but is {value}")
        if self.resume and not self.logdir:
            raise InputError("--resume needs --logdir: the folder of the run to go on with")
        if self.client_ids and not self.named_clients():
            raise InputError(f"--client-ids {self.client_ids!r} names nobody")
        if self.client_ids and self.over_select > 1:
            raise InputError("--over-select asks more of a sample, --client-ids takes none")
        number_in(self.cohort, "--cohort")
        number_in(self.eval_cohort or self.cohort, "--eval-cohort")
        if self.seed >= 2**63:
            raise InputError(f"--seed must be under 2^63, but is {self.seed}")
        for name in ("rounds", "local_epochs", "over_select", "deadline", "min_replies"):
            value = getattr(self, name)
            if not 1 <= value < float("inf"):
                finite = " and finite" if isinstance(value, float) else ""
                said = f"--{name.replace('_', '-')} must be at least 1{finite}, not {value}"
                raise InputError(said)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Read Flower's run config (kebab-case keys).

        Raises:
            InputError: An unknown key, or a value of the wrong type or outside the choices.
        """
        known = {key_of(item): item for item in fields(cls)}
        values = {}
        for key, value in config.items():
            if key not in known:
                raise unknown("setting", key, known)
            item = known[key]
            if item.type is float and type(value) is int:
                value = float(value)
            values[item.name] = value
        return cls(**values)

    def to_config(self) -> dict[str, Value]:
        """The settings as Flower's run config."""
        return {key_of(item): getattr(self, item.name) for item in fields(self)}

    def named_clients(self) -> list[str]:
        """`client_ids` as a list, empty where none are given."""
        return names_in(self.client_ids)

    def clients_a_round(self) -> int:
        """Clients that train in a round, 0 for all there are."""
        return len(self.named_clients()) or number_in(self.cohort, "--cohort")


def names_in(text: str) -> list[str]:
    """`A,B` as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def number_in(text: str, flag: str) -> int:
    """A number of clients, given as `N|all`: 0 for all there are. InputError for anything else."""
    if text == "all":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{flag} must be a number of clients, 1 or more, or all, not {text!r}")
    return int(text)


def key_of(item: Field[Any]) -> str:
    """A field's key in Flower's run config."""
    return item.name.replace("_", "-")


def flag(item: Field[Any]) -> str:
    """A field's flag on the command line."""
    return "--" + key_of(item)
