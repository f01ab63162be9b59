"""Logged runs side by side: a table, and a picture of accuracy against rounds and against megabytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from server.record import METRICS
from settings.errors import InputError, unknown
from simulation.figures import drawing, new_figure, write_picture
from weights.files import check_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """One logged run: its name (the folder's), its settings and its rounds, as the JSON file has them."""

    name: str
    settings: dict[str, Any]
    rounds: list[dict[str, Any]]

    @property
    def last_evaluation(self) -> dict[str, float]:
        """Metrics of the last round that evaluated; empty if none did."""
        return next((item["eval"] for item in reversed(self.rounds) if item["eval"]), {})

    def total(self, bits: str) -> float:
        """Megabytes (10^6 bytes) over all rounds: `aggregated_bits`, `broadcasted_bits`, ..."""
        return float(self.rounds[-1]["comm"][f"cumulative_{bits}"]) / 8e6

    def curve(self, side: str, metric: str) -> tuple[list[int], list[float], list[float]]:
        """Rounds, cumulative megabytes from the clients, and the metric, where the round has it.

        Args:
            side: "train" (the clients' metrics during training) or "eval" (held-out data).
            metric: Its name.
        """
        points = [item for item in self.rounds if metric in item[side]]
        return (
            [item["round"] for item in points],
            [item["comm"]["cumulative_aggregated_bits"] / 8e6 for item in points],
            [item[side][metric] for item in points],
        )


def read_run(path: Path) -> Run:
    """A run from its logdir, or from its JSON file.

    Raises:
        InputError: Neither, or not a file of ours, or a run without a finished round.
    """
    file = path / METRICS if path.is_dir() else path
    check_file(file)
    try:
        content = json.loads(file.read_text())
        run = Run(
            path.stem if path.is_file() else path.name, content["settings"], content["rounds"]
        )
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is not the JSON file of a run") from None
    if not run.rounds:
        raise InputError(f"{file}: no round is finished")
    return run


def comparison_table(runs: Sequence[Run]) -> Table:
    """Final metrics and traffic; the ratio is of bytes from the clients, to the first run's."""
    table = Table("run", "codec", box=None, pad_edge=False, collapse_padding=True)
    for title in ("rounds", "loss", "accuracy", "MB up", "MB down", "ratio"):
        table.add_column(title, justify="right")
    first = runs[0].total("aggregated_bits")
    for run in runs:
        final = run.last_evaluation
        table.add_row(
            run.name,
            str(run.settings["codec"]),
            str(len(run.rounds)),
            *(_number(final.get(name), 4) for name in ("loss", "accuracy")),
            f"{run.total('aggregated_bits'):.1f}",
            f"{run.total('broadcasted_bits'):.1f}",
            _number(first / sent if (sent := run.total("aggregated_bits")) else None, 1),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    """Empty for what there is none of: a metric that was not finite is null in JSON."""
    return "" if value is None else f"{value:.{digits}f}"


def chosen_metric(runs: Sequence[Run], side: str, metric: str = "") -> str:
    """The metric that was asked for; where none was, the accuracy if a run has one, else the loss.

    Raises:
        InputError: No run has it, or none has been evaluated.
    """
    known = {name: None for run in runs for item in run.rounds for name in item[side]}
    if not known:
        hint = ": --on train shows what they had in training" if side == "eval" else ""
        raise InputError(f"no run has {side} metrics{hint}")
    metric = metric or ("accuracy" if "accuracy" in known else "loss")
    if metric not in known:
        raise unknown(f"{side} metric", metric, known)
    return metric


def draw(runs: Sequence[Run], side: str, metric: str, path: Path) -> None:
    """Write the picture: a metric against rounds, and against megabytes sent.

    Raises:
        InputError: matplotlib is not installed.
    """
    with drawing():
        write_picture(_curves(runs, side, metric), path)


def _curves(runs: Sequence[Run], side: str, metric: str) -> "Figure":
    figure = new_figure(10, 4)
    by_round, by_bytes = figure.subplots(1, 2, sharey=True)
    for run in runs:
        rounds, megabytes, values = run.curve(side, metric)
        by_round.plot(rounds, values, label=f"{run.name} ({run.settings['codec']})")
        by_bytes.plot(megabytes, values)
    by_round.set(xlabel="round", ylabel=f"{side} {metric}")
    by_bytes.set(xlabel="megabytes from the clients (cumulative)", xscale="log")
    for axes in (by_round, by_bytes):
        axes.grid()
    by_round.legend()
    return figure
