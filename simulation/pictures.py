"""The pictures of `explore`: each a matplotlib figure made from a survey."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from settings.errors import counted
from simulation.figures import ACCENT, FAINT, MAIN, new_figure
from simulation.survey import Ints, Survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Images = npt.NDArray[Any]
Client = tuple[str, Images, Ints | None]
"""A client's id, images, and a label for each where there is one."""

_GRID = (4, 10)
_COLUMNS = 3
_CHARACTERS = 8
# Characters rarer than this in a client's text are chance, not style.
_FEWEST_OCCURRENCES = 5
_NAMES = {" ": "space", "\n": "newline", "\r": "return", "\t": "tab"}


def clients_figure(survey: Survey) -> "Figure":
    """How much clients have; for text in snippets and characters, else also how evenly labels are mixed."""
    figure = new_figure(9, 3.6, survey.title)
    left, right = figure.subplots(1, 2)
    number = counted(len(survey.client_ids), "client")
    _histogram(left, survey.examples, f"{survey.unit} of a client", number)
    if survey.kind == "text":
        _histogram(right, survey.sizes, "characters of a client", number)
    elif len(survey.values):
        _label_shares(right, survey)
    else:
        right.remove()
    return figure


def labels_figure(survey: Survey) -> "Figure":
    """Examples per label of the chosen clients, on one scale."""
    figure = _paneled(survey, "examples per label")
    positions = np.arange(len(survey.values))
    for axes, client_id in _panels(figure, survey.chosen, sharey=True):
        axes.bar(positions, survey.counts_of(client_id), color=MAIN, width=0.8)
        _label_ticks(axes, survey.values)
    figure.supxlabel("label", fontsize=9.5)
    figure.supylabel("examples", fontsize=9.5)
    return figure


def examples_figure(
    survey: Survey, client_id: str, images: Images, labels: Ints | None
) -> "Figure":
    """A client's first 40 images, each under its label."""
    rows, columns = _GRID
    count = min(rows * columns, len(images))
    rows = -(-count // columns)
    what = f"{counted(count, 'image')} of {client_id}"
    figure = new_figure(8, 0.95 * rows + 0.7, f"{survey.title}\n{what}")
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < count:
            _show(axes, images[index], images)
            if labels is not None:
                axes.set_title(str(labels[index]), fontsize=8.5, pad=2, color="#4a5259")
    return figure


def means_figure(survey: Survey, clients: Sequence[Client]) -> "Figure":
    """Mean image of each of the ten commonest labels (columns), client by client (rows)."""
    commonest = np.sort(survey.values[np.argsort(-survey.counts.sum(axis=0))[:10]])
    figure = new_figure(
        8.5, 0.8 * len(clients) + 0.9, f"{survey.title}\nmean image of each label, client by client"
    )
    grid = figure.subplots(len(clients), len(commonest), squeeze=False)
    for row, (client_id, images, labels) in zip(grid, clients, strict=True):
        for axes, label in zip(row, commonest, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if (labels == label).any():
                _show(axes, images[labels == label].mean(axis=0), images)
            else:
                axes.text(0.5, 0.5, "none", color=FAINT, ha="center", va="center", fontsize=8)
                axes.set_aspect(1)
        row[0].set_ylabel(
            shortened(client_id, 18), rotation=0, ha="right", va="center", fontsize=8.5
        )
    for axes, label in zip(grid[0], commonest, strict=True):
        axes.set_title(str(label), pad=3)
    return figure


def characters_figure(survey: Survey) -> "Figure":
    """What the chosen clients write more often than everybody together."""
    figure = _paneled(survey, "characters that a client uses more than others do")
    for axes, client_id in _panels(figure, survey.chosen):
        named, factors = unusual_characters(survey, client_id)
        bars = axes.barh(named, factors, color=MAIN, height=0.7)
        axes.bar_label(bars, labels=[f"{factor:.1f}x" for factor in factors], padding=3, fontsize=8)
        axes.invert_yaxis()
        axes.axvline(1, color=ACCENT, linewidth=1)
        axes.set_xlim(0, 1.25 * max([*factors, 1.0]))
        axes.tick_params(axis="y", length=0)
    figure.supxlabel("times as frequent as in all clients' text (line: as frequent)", fontsize=9.5)
    return figure


def unusual_characters(survey: Survey, client_id: str) -> tuple[list[str], list[float]]:
    """The characters that a client over-uses most, and how many times as often as all clients together."""
    own, everybody = survey.counts_of(client_id), survey.counts.sum(axis=0)
    expected = everybody / everybody.sum() * max(own.sum(), 1)
    factors = np.where(own >= _FEWEST_OCCURRENCES, own / expected, 0.0)
    order = [index for index in np.argsort(-factors)[:_CHARACTERS] if factors[index] > 0]
    return [_named(int(survey.values[index])) for index in order], factors[order].tolist()


def shortened(name: str, width: int) -> str:
    """A name that fits: what gives way is before its end, since ids differ there."""
    if len(name) <= width:
        return name
    tail = 2 * width // 3
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def _named(code: int) -> str:
    character = chr(code)
    return _NAMES.get(character, character if character.isprintable() else f"U+{code:04X}")


def _histogram(axes: "Axes", sizes: Ints, what: str, who: str) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    positive = sizes[sizes > 0]
    # Text spreads over several powers of ten; images of a writer do not.
    if positive.max() > 10 * np.median(positive):
        bins = np.geomspace(positive.min(), positive.max(), 30).tolist()
        axes.set_xscale("log")
    else:
        step = -(-int(sizes.max() - sizes.min() + 1) // 30)
        bins = (np.arange(sizes.min(), sizes.max() + step + 1, step) - 0.5).tolist()
    axes.hist(sizes, bins=bins, color=MAIN, edgecolor="white", linewidth=0.5)
    median = float(np.median(sizes))
    axes.axvline(median, color=ACCENT, linewidth=1.2)
    axes.set(xlabel=f"{what} (median {median:,.0f})", ylabel="clients", title=who)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _label_shares(axes: "Axes", survey: Survey) -> None:
    """For each label, how its share of a client's examples varies over the clients."""
    total = survey.counts.sum(axis=1, keepdims=True)
    shares = 100 * survey.counts[total[:, 0] > 0] / total[total[:, 0] > 0]
    positions = np.arange(len(survey.values))
    low, quarter, median, three, high = np.percentile(shares, [5, 25, 50, 75, 95], axis=0)
    axes.vlines(positions, low, high, color=FAINT, linewidth=1.2, zorder=1, label="9 of 10 clients")
    axes.bar(
        positions,
        three - quarter,
        bottom=quarter,
        color=MAIN,
        width=0.6,
        label="half of them (line: median)",
    )
    axes.hlines(median, positions - 0.3, positions + 0.3, color="white", linewidth=1.5, zorder=3)
    axes.set(ylabel="% of a client's examples", xlabel="label", title="how labels are mixed")
    axes.set_ylim(0, 1.3 * max(float(high.max()), 1))
    axes.legend(loc="upper right", ncols=2)
    _label_ticks(axes, survey.values)


def _label_ticks(axes: "Axes", values: Ints) -> None:
    step = -(-len(values) // 12)
    axes.set_xticks(np.arange(len(values))[::step], [str(value) for value in values[::step]])


def _paneled(survey: Survey, what: str) -> "Figure":
    rows = -(-len(survey.chosen) // _COLUMNS)
    return new_figure(9, 2.1 * rows + 1, f"{survey.title}\n{what}")


def _panels(
    figure: "Figure", client_ids: Sequence[str], sharey: bool = False
) -> Iterator[tuple["Axes", str]]:
    """One panel a client, three in a row, titled."""
    rows = -(-len(client_ids) // _COLUMNS)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=sharey)
    for index, axes in enumerate(grid.flat):
        if index < len(client_ids):
            axes.set_title(shortened(client_ids[index], 28))
            yield axes, client_ids[index]
        else:
            axes.remove()


def _show(axes: "Axes", image: Images, like: Images) -> None:
    """An image on the scale of its client's images: 0 to 1 or 0 to 255, or whatever they span."""
    low, high = min(float(like.min()), 0.0), float(like.max())
    high = 1.0 if high <= 1 else 255.0 if high <= 255 and low >= 0 else high
    scaled = (image - low) / (high - low)
    axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
