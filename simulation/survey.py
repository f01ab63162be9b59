"""What clients have: how many examples, of which labels or characters. A survey is all that `explore` draws from."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from settings.errors import InputError
from tasks.data import Examples, Population
from tasks.task import Task
from weights.files import replacing

Ints = npt.NDArray[np.int64]
Kind = Literal["images", "text", "other"]

_MOST_LABELS = 100
_CHOSEN = 6
_ENOUGH: dict[Kind, int] = {"images": 40, "text": 5_000, "other": 40}


@dataclass(frozen=True)
class Survey:
    """Clients' data in numbers; row i of the arrays is client i.

    Attributes:
        title: Which task, split and data this is; sample data that are synthetic are called so.
        kind: What the examples are: decides which pictures there are.
        client_ids: As the population sorts them.
        examples: (clients,) examples: images, snippets.
        values: (values,) what `counts` counts: labels, or code points of characters.
        counts: (clients, values) examples with a label, or occurrences of a character; no values
            where targets are not whole numbers, or more than 100 different ones.
        chosen: Clients that are looked at closely.
    """

    title: str
    kind: Kind
    client_ids: Sequence[str]
    examples: Ints
    values: Ints
    counts: Ints
    chosen: Sequence[str]

    def counts_of(self, client_id: str) -> Ints:
        """One client's row of `counts`."""
        counts: Ints = self.counts[self.client_ids.index(client_id)]
        return counts

    @property
    def sizes(self) -> Ints:
        """(clients,) what a client's data amount to: characters of text, or else examples."""
        return self.counts.sum(axis=1) if self.kind == "text" else self.examples

    @property
    def unit(self) -> str:
        """What `examples` counts, for titles and tables."""
        return {"images": "images", "text": "snippets", "other": "examples"}[self.kind]


def take_survey(
    task: Task,
    population: Population,
    client_ids: Iterable[str],
    *,
    title: str,
    named: Sequence[str],
    seed: int,
) -> Survey:
    """Read the clients' data once, and count.

    Args:
        task: Whose `prepare` finds the labels.
        population: Where the data are.
        client_ids: Clients to survey.
        title: `Survey.title`.
        named: Clients to look at closely; none: six with much data are drawn from `seed`.
        seed: Of that drawing.

    Raises:
        InputError: Data that do not fit the task, or no client with data.
    """
    rows: dict[str, tuple[int, dict[int, int]]] = {}
    kind: Kind = "other"
    for client_id in client_ids:
        examples = population.examples(client_id)
        kind = kind_of(examples)
        if kind == "text" and not rows:
            task.prepared(client_id, examples)
        counts = _characters(examples) if kind == "text" else _labels(task, client_id, examples)
        rows[client_id] = (len(next(iter(examples.values()), ())), counts)
    values = sorted({value for _, counts in rows.values() for value in counts})
    if kind != "text" and len(values) > _MOST_LABELS:
        values = []
    survey = Survey(
        title=title,
        kind=kind,
        client_ids=[*rows],
        examples=np.array([number for number, _ in rows.values()], dtype=np.int64),
        values=np.array(values, dtype=np.int64),
        counts=np.array(
            [[counts.get(value, 0) for value in values] for _, counts in rows.values()],
            dtype=np.int64,
        ).reshape(len(rows), len(values)),
        chosen=[],
    )
    if not survey.examples.any():
        raise InputError(f"{title}: no client has an example")
    return replace(survey, chosen=[*named] or _choose(survey, seed))


def kind_of(examples: Examples) -> Kind:
    """Text if a feature holds strings, images if one has the shape (n, height, width[, channels])."""
    if text_of(examples) is not None:
        return "text"
    return "other" if images_of(examples) is None else "images"


def text_of(examples: Examples) -> list[str] | None:
    """The first feature of strings, as text; what is not UTF-8 becomes the replacement character."""
    for array in examples.values():
        if array.ndim == 1 and array.dtype.kind in "OSU":
            return [
                item.decode(errors="replace") if isinstance(item, bytes) else str(item)
                for item in array
            ]
    return None


def images_of(examples: Examples) -> npt.NDArray[Any] | None:
    """The first feature of images, (n, height, width) or (n, height, width, 3)."""
    for array in examples.values():
        channels = array.shape[3:]
        if array.ndim >= 3 and array.dtype.kind in "uif" and channels in ((), (1,), (3,)):
            return array[..., 0] if channels == (1,) else array
    return None


def labels_of(task: Task, client_id: str, examples: Examples) -> Ints | None:
    """(n,) targets of one client as the task prepares them, if they are whole numbers.

    Raises:
        InputError: Data that do not fit the task.
    """
    targets = task.prepared(client_id, examples).targets.numpy()
    whole = np.isfinite(targets).all() and np.array_equal(targets, np.round(targets))
    return np.asarray(targets, dtype=np.int64) if whole else None


def _labels(task: Task, client_id: str, examples: Examples) -> dict[int, int]:
    labels = labels_of(task, client_id, examples)
    if labels is None:
        return {}
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _characters(examples: Examples) -> dict[int, int]:
    text = "".join(text_of(examples) or ())
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    values, counts = np.unique(codes, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _choose(survey: Survey, seed: int) -> list[str]:
    """Some of the clients with enough data for a picture; where few have enough, those with the most."""
    sizes = survey.sizes
    enough = max(_CHOSEN, np.count_nonzero(sizes >= _ENOUGH[survey.kind]))
    candidates = [index for index in np.argsort(-sizes, kind="stable")[:enough] if sizes[index]]
    drawn = np.random.default_rng(seed).permutation(candidates)[:_CHOSEN]
    return [survey.client_ids[index] for index in np.sort(drawn)]


def write_clients(survey: Survey, path: Path) -> None:
    """The table of all clients as CSV: id, examples, and how many of each value."""
    names = [chr(value) if survey.kind == "text" else f"label {value}" for value in survey.values]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["client", survey.unit, *names])
        for client_id, number, counts in zip(
            survey.client_ids, survey.examples.tolist(), survey.counts.tolist(), strict=True
        ):
            writer.writerow([client_id, number, *counts])
