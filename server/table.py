"""The table that closes a run."""

from collections.abc import Sequence
from typing import Literal

from rich.table import Table

from server.record import RoundRecord

_ROWS = 20


def closing_table(history: Sequence[RoundRecord], room: int) -> Table:
    """Rounds as rows; of a long run the first and the last ones.

    Args:
        history: All rounds.
        room: The terminal's width. Numbers that do not fit into it stay whole, and make the table wider.
    """
    sides = ("train", "held-out") if any(record.eval for record in history) else ("train",)
    names = [
        name for name in (history[-1].train if history else {}) if not name.startswith("num_")
    ][:2]
    titles = ["round", *(f"{side} {name}" for side in sides for name in names)]
    titles += ["MB down", "MB up", "empty", "failed", "seconds"]
    shown = [*history]
    if len(history) > _ROWS:
        shown = [*history[: _ROWS // 2], *history[-_ROWS // 2 :]]
    rows = [_row(record, len(sides), names) for record in shown]
    widths = _widths(titles, rows, room)
    whole = sum(widths) + len(widths) - 1  # else rich would make it fit
    table = Table(box=None, pad_edge=False, collapse_padding=True, width=whole)
    for title, width in zip(titles, widths, strict=True):
        justify: Literal["left", "right"] = "left" if title == "round" else "right"
        table.add_column(title, justify=justify, overflow="fold", width=width)
    for row in rows:
        table.add_row(*row)
    return table


def _row(record: RoundRecord, sides: int, names: Sequence[str]) -> list[str]:
    values = [
        f"{side[name]:.4f}" if name in side else ""
        for side in (record.train, record.eval)[:sides]
        for name in names
    ]
    comm = record.comm
    traffic = [f"{comm[key] / 8e6:.2f}" for key in ("broadcasted_bits", "aggregated_bits")]
    counts = [str(comm[key]) for key in ("empty", "failures")]
    return [str(record.round), *values, *traffic, *counts, f"{record.seconds:.1f}"]


def _widths(titles: Sequence[str], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """The columns' widths: titles are folded as narrowly as it takes, numbers never."""
    columns = [*zip(titles, *rows, strict=True)]
    for longest in range(max(map(len, titles)), 0, -1):
        widths = [max(len(column[0][:longest]), *map(len, column[1:]), 0) for column in columns]
        if sum(widths) + len(widths) - 1 <= room:
            break
    return widths
