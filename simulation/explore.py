"""`fedferry explore`: clients' data as pictures, a table and a TensorBoard page."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.progress import track
from rich.table import Table
from rich.text import Text

from server.console import output
from settings.errors import counted, shorten, unknown
from settings.schema import Settings, number_in
from simulation import pictures
from simulation.figures import drawing, write_picture
from simulation.survey import (
    Survey,
    images_of,
    labels_of,
    take_survey,
    text_of,
    write_clients,
)
from tasks.catalogue import load_task
from tasks.data import Population, Split
from tasks.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST, _LEAST = 8, 4
_COLUMNS = {
    "images": ("labels", "commonest"),
    "text": ("characters", "different ones"),
    "other": ("labels", "commonest"),
}


def explore(settings: Settings, split: Split, clients: str) -> None:
    """Survey a task's clients; print a table, and write PNGs, a CSV and TensorBoard logs.

    Args:
        settings: Task, data and seed; `client_ids` are looked at closely (none: six are drawn), and
            `logdir` gets all that is written (empty: `runs/explore-TASK`).
        split: Whose data.
        clients: How many clients to read, drawn from the seed, or "all".

    Raises:
        InputError: Data that cannot be read or do not fit, unknown clients, matplotlib not installed.
    """
    console = output()
    task = load_task(settings.task)
    with drawing():
        population = task.population(settings.data, split)
        named = settings.named_clients()
        for name in named:
            if name not in population:
                raise unknown("client id", name, population.client_ids)
        ids = sorted({*_drawn(population, clients, settings.seed), *named})
        shown = track(
            ids,
            "reading clients",
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        title = f"{task.name}, {split} split: {_source(task, settings.data)}"
        survey = take_survey(task, population, shown, title=title, named=named, seed=settings.seed)
        folder = Path(settings.logdir or f"runs/explore-{task.name.replace(':', '-')}")
        write_clients(survey, folder / "clients.csv")
        _draw(task, population, survey, folder)
    _print(console, population, survey, folder)


def _drawn(population: Population, clients: str, seed: int) -> Iterable[str]:
    ids = population.client_ids
    number = number_in(clients, "--clients") or len(ids)
    drawn = np.random.default_rng(seed).permutation(len(ids))[:number]
    return [ids[index] for index in drawn]


def _draw(task: Task, population: Population, survey: Survey, folder: Path) -> None:
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder))
    for name, figure in _figures(task, population, survey):
        png = folder / f"{name}.png"
        write_picture(figure, png)
        board.add_image(f"explore/{name}", imread(png)[..., :3], dataformats="HWC")
    board.add_histogram(f"explore/{survey.unit}_of_a_client", survey.examples)
    for client_id, text in _snippets(population, survey):
        board.add_text(f"explore/{client_id}", indent(text, "    "))  # monospaced
    board.close()


def _source(task: Task, data: str) -> str:
    """What the data are: nobody shall take made-up writers for real ones."""
    known = {"sample": f"sample data, {task.sample_is}", "tff": "TFF's data"}
    return known.get(data) or Path(data).name


def _figures(task: Task, population: Population, survey: Survey) -> Iterator[tuple[str, "Figure"]]:
    yield "clients", pictures.clients_figure(survey)
    if survey.kind == "text":
        yield "characters", pictures.characters_figure(survey)
    elif len(survey.values):
        yield "labels", pictures.labels_figure(survey)
    if survey.kind == "images":
        looked_at = [_images(task, population, client_id) for client_id in survey.chosen[:5]]
        looked_at = [client for client in looked_at if len(client[1])]
        if looked_at:
            yield "examples", pictures.examples_figure(survey, *looked_at[0])
        labelled = [client for client in looked_at if client[2] is not None]
        if labelled:
            yield "means", pictures.means_figure(survey, labelled)


def _images(task: Task, population: Population, client_id: str) -> pictures.Client:
    examples = population.examples(client_id)
    images = images_of(examples)
    assert images is not None
    labels = labels_of(task, client_id, examples)
    return client_id, images, labels if labels is not None and labels.ndim == 1 else None


def _snippets(population: Population, survey: Survey) -> Iterator[tuple[str, str]]:
    """The chosen clients' first words, where they have words."""
    for client_id in survey.chosen if survey.kind == "text" else ():
        text = "\n".join(text_of(population.examples(client_id)) or ())
        yield client_id, shorten(text)


def _print(console: Console, population: Population, survey: Survey, folder: Path) -> None:
    console.print(survey.title, markup=False, style="bold")
    console.print(_summary(survey))
    console.print(_table(survey))
    for client_id, text in [*_snippets(population, survey)][:1]:
        console.print(Panel(Text(text), title=client_id, title_align="left"))
    console.print(f"pictures:    {folder}{os.sep}*.png", soft_wrap=True, markup=False)
    console.print(f"all clients: {folder / 'clients.csv'}", soft_wrap=True, markup=False)
    console.print(f"TensorBoard: tensorboard --logdir {folder}", soft_wrap=True, markup=False)


def _summary(survey: Survey) -> str:
    sizes = survey.sizes
    what = "characters" if survey.kind == "text" else survey.unit
    return (
        f"{counted(len(sizes), 'client')}, "
        f"{counted(survey.examples.sum(), survey.unit.removesuffix('s'))}\n"
        f"{what} of a client: {sizes.min():,} to {sizes.max():,}, median {np.median(sizes):,.0f}"
    )


def _table(survey: Survey) -> Table:
    """The clients with the most data and those with the least."""
    table = Table("client", box=None, pad_edge=False, collapse_padding=True)
    table.add_column(survey.unit, justify="right")
    for title in _COLUMNS[survey.kind] if len(survey.values) else ():
        table.add_column(title, justify="right")
    order = np.argsort(-survey.sizes, kind="stable").tolist()
    left_out = len(order) - _MOST - _LEAST
    for place, index in enumerate(order):
        if left_out > 1 and _MOST <= place < len(order) - _LEAST:
            if place == _MOST:
                table.add_row(f"({left_out:,} clients more)")
            continue
        name = pictures.shortened(survey.client_ids[index], 40)
        cells = _cells(survey, index) if len(survey.values) else ()
        table.add_row(Text(name), f"{survey.examples[index]:,}", *cells)
    return table


def _cells(survey: Survey, index: int) -> tuple[str, ...]:
    counts = survey.counts[index]
    total, different = counts.sum(), int((counts > 0).sum())
    if survey.kind == "text":
        return f"{total:,}", f"{different}"
    if not total:
        return "0", ""
    most = int(counts.argmax())
    return f"{different}", f"{survey.values[most]} ({100 * counts[most] / total:.0f}%)"
