"""`fedferry compare`: what it reads, its table and its picture."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from settings.errors import InputError
from simulation.compare import chosen_metric, comparison_table, draw, read_run


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
    ("name", "begin"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a.jpg", b"\xff\xd8\xff")]
)
def test_a_picture_is_what_its_name_says(tmp_path: Path, name: str, begin: bytes) -> None:
    pytest.importorskip("matplotlib")
    run = read_run(logged(tmp_path / "plain", "identity", 8))
    draw([run], "eval", "accuracy", tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begin)


def test_a_run_that_diverged_and_one_that_sent_nothing(tmp_path: Path) -> None:
    runs = [logged(tmp_path / name, "identity", bits) for name, bits in (("nan", 8), ("none", 0))]
    diverged = json.loads((runs[0] / "metrics.json").read_text())
    diverged["rounds"][-1]["eval"] = {"loss": None, "accuracy": 0.5}
    (runs[0] / "metrics.json").write_text(json.dumps(diverged))
    for order in (runs, runs[::-1]):
        read = [read_run(path) for path in order]
        console = Console(width=80, record=True)
        console.print(comparison_table(read))
        lines = {line.split()[0]: line.split() for line in console.export_text().splitlines()}
        assert lines["nan"][2:4] == ["3", "0.5000"]
        assert lines["none"][-2:] == ["0.0", "3.0"]  # no ratio
        pytest.importorskip("matplotlib")
        draw(read, "eval", "loss", tmp_path / "curves.png")


def test_the_picture_shows_the_accuracy_or_else_the_loss(tmp_path: Path) -> None:
    run = read_run(logged(tmp_path / "run", "identity", 8))
    assert chosen_metric([run], "eval") == "accuracy"
    assert chosen_metric([run], "eval", "loss") == "loss"
    for item in run.rounds:
        item["eval"].pop("accuracy", None)
    assert chosen_metric([run], "eval") == "loss"
    with pytest.raises(InputError, match="unknown eval metric 'accuracy': choose from loss"):
        chosen_metric([run], "eval", "accuracy")
    for item in run.rounds:
        item["eval"].clear()
    with pytest.raises(InputError, match="no run has eval metrics: --on train"):
        chosen_metric([run], "eval")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), ("{", "not the JSON file"), ('{"rounds": []}', "not the JSON file")],
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
