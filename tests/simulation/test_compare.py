"""`fedferry compare`: what it reads, its table and its picture."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from settings.errors import InputError
from simulation.compare import comparison_table, draw, read_run


def logged(folder: Path, codec: str, bits: int) -> Path:
    """A logdir of three rounds, the second without an evaluation."""
    rounds = [
        {
            "round": number,
            "eval": {} if number == 2 else {"loss": 1 / number, "accuracy": number / 4},
            "comm": {
                "cumulative_aggregated_bits": bits * number,
                "cumulative_broadcasted_bits": 8_000_000 * number,
            },
        }
        for number in (1, 2, 3)
    ]
    folder.mkdir()
    (folder / "metrics.json").write_text(
        json.dumps({"settings": {"codec": codec}, "rounds": rounds})
    )
    return folder


def test_runs_side_by_side(tmp_path: Path) -> None:
    plain = read_run(logged(tmp_path / "plain", "identity", 80_000_000))
    small = read_run(logged(tmp_path / "small", "uniform:bits=8", 20_000_000))
    console = Console(width=80, record=True)
    console.print(comparison_table([plain, small]))
    lines = console.export_text().splitlines()
    assert lines[1].split() == ["plain", "identity", "3", "0.3333", "0.7500", "30.0", "3.0", "1.0"]
    assert lines[2].split()[-3:] == ["7.5", "3.0", "4.0"]
    assert small.curve("eval", "accuracy") == ([1, 3], [2.5, 7.5], [0.25, 0.75])
    pytest.importorskip("matplotlib")
    draw([plain, small], "eval", "accuracy", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("{", "not the JSON file"), ('{"rounds": []}', "not the JSON file")],
)
def test_what_is_not_a_run(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "x.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=said):
        read_run(file)
    file.write_text('{"settings": {}, "rounds": []}')
    with pytest.raises(InputError, match="no round is finished"):
        read_run(file)
