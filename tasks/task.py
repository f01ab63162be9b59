"""What a task is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from settings.errors import InputError
from tasks.data import Examples, Population, Split, open_population
from tasks.metrics import ALWAYS, Metric
from tasks.published import cached
from tasks.stream import Batch, Prepared
from weights.files import check_word
from weights.keras import build_model


@dataclass(frozen=True)
class Task:
    """A federated learning task, declared.

    Attributes:
        name: How logs call it.
        model: Builds the task's own model, freshly initialised.
        prepare: One client's examples, as the data file has them, to model inputs and targets.
        loss: (model outputs, batch) -> mean loss over the batch's counted targets, a scalar.
        checkpoint: Where a run starts without `--init`; None: from `model`. A checkpoint decides the
            architecture too.
        metrics: Name -> metric; `loss`, `num_examples` and `num_batches` are always there.
        sample: split -> the embedded offline data behind `--data sample`.
        sample_is: What these are, for whoever looks at them: "synthetic writers".
        published: The name of what `fedferry download` fetches for this task, opened by `--data tff`.
        open: (path, split) -> population; TFF's file formats unless a task reads its own.
        batch_size: Default of `--batch-size`.
        shuffle_buffer: Examples in the shuffle buffer, as in `tf.data.Dataset.shuffle`.
        drop_remainder: Whether a last short batch is dropped.
        client_optimizer: Default of `--client-optimizer`.
        probe: A made-up batch with the highest label in it, to try a checkpoint's model on.
        write_sample: (model, seed) -> text that shows what the model does, for logs.
    """

    name: str
    model: Callable[[], nn.Module]
    prepare: Callable[[Examples], Prepared]
    loss: Callable[[Tensor, Batch], Tensor]
    checkpoint: Path | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    sample: Callable[[Split], Population] | None = None
    sample_is: str = ""
    published: str = ""
    open: Callable[[str, Split], Population] = open_population
    batch_size: int = 20
    shuffle_buffer: int = 100
    drop_remainder: bool = False
    client_optimizer: str = "sgd:lr=0.02"
    probe: Batch | None = None
    write_sample: Callable[[nn.Module, int], str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module):
            raise self._wrong("model must build the model, as its class does, and not be one")
        if self.batch_size < 1:
            raise self._wrong(f"batch_size must be at least 1, not {self.batch_size}")
        for name, metric in self.metrics.items():
            # Flower's own strategies find the weight of a reply under the last of these names.
            if name in {*ALWAYS, "num-examples"}:
                raise self._wrong(f"{name!r} is there anyway, a metric needs another name")
            if not isinstance(metric, Metric):
                raise self._wrong(f"metric {name} must be a Metric, not a {_kind(metric)}")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"task {self.name}: {what}")

    def population(self, data: str, split: Split) -> Population:
        """Open `--data`: a path, `sample` for the embedded data, or `tff` for what was downloaded.

        Raises:
            InputError: There is none, or it cannot be read.
        """
        if data == "tff":
            if not self.published:
                raise InputError(f"TFF published no data for task {self.name}: give --data PATH")
            return self._opened(str(cached(self.published)), split)
        if data != "sample":
            try:
                return self._opened(data, split)
            except InputError:
                check_word(data, "sample", "tff")
                raise
        if self.sample is None:
            raise InputError(f"task {self.name} has no embedded sample data: give --data PATH")
        return self.sample(split)

    def _opened(self, path: str, split: Split) -> Population:
        population = self.open(path, split)
        if not hasattr(population, "client_ids"):
            raise self._wrong(
                f"open must give a Population, as InMemory is, not a {_kind(population)}"
            )
        return population

    def prepared(self, client_id: str, examples: Examples) -> Prepared:
        """`prepare`, for a client of that name.

        Raises:
            InputError: Data that do not fit the task: a feature is missing, or has another shape.
        """
        try:
            prepared = self.prepare(examples)
            _check_prepared(prepared)
            return prepared
        except KeyError as error:
            reason = f"it has no feature {error}"
        except ValueError as error:
            reason = str(error)
        shapes = ", ".join(f"{name} {array.shape}" for name, array in examples.items())
        raise InputError(
            f"client {client_id!r} has data that task {self.name} cannot prepare: {reason}; "
            f"its features are: {shapes}"
        )

    def mean_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """`loss`, one number, with a gradient where one is asked for.

        Raises:
            InputError: It gives something else.
        """
        loss = self.loss(outputs, batch)
        if not isinstance(loss, Tensor) or loss.shape:
            found = f"shape {[*loss.shape]}" if isinstance(loss, Tensor) else _kind(loss)
            raise self._wrong(f"loss must be the mean over a batch, a scalar tensor, not {found}")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise self._wrong(
                "loss has no gradient: torch must compute it from the model's outputs"
            )
        return loss

    def build(self, architecture: str) -> nn.Module:
        """The task's own model, or the one that a Keras `model_config` describes (giving logits)."""
        if architecture:
            return build_model(architecture, logits=True)
        model = self.model()
        if not isinstance(model, nn.Module):
            raise self._wrong(f"model must build a torch.nn.Module, not a {_kind(model)}")
        return model


def _kind(what: object) -> str:
    return type(what).__name__


def _check_prepared(prepared: Prepared) -> None:
    if not isinstance(prepared, Prepared):
        raise ValueError(f"prepare gives a {_kind(prepared)}, not Prepared(inputs, targets)")
    parts = (prepared.inputs, prepared.targets, prepared.mask)
    there = [part for part in parts if part is not None]
    if not all(isinstance(part, Tensor) for part in there):
        raise ValueError(f"prepare gives a {', a '.join(map(_kind, there))}, not tensors")
    lengths = {tuple(part.shape[:1]) for part in there}
    if len(lengths) > 1 or () in lengths:
        shapes = " and ".join(str(tuple(part.shape)) for part in there)
        raise ValueError(f"inputs and targets must be equally many, not of shapes {shapes}")
