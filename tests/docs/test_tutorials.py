"""The tutorials in the repository are executed, clean and small. `make tutorials` executes them."""

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs/tutorials"
NAMES = ["text_generation", "image_classification", "compression"]


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_is_executed_clean_and_small(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    text = path.read_text()
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    # One run from top to bottom, in a fresh kernel.
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in data(output) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not [place for place in ("/tmp/", "/home/", "/root/") if place in text]
    assert path.stat().st_size < 1_000_000


def data(output: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = output.get("data", {})
    return shown


@pytest.mark.parametrize("name", NAMES)
def test_one_line_says_where_the_data_are(name: str) -> None:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"]]
    assert [line.startswith('DATA = "sample"') for line in lines].count(True) == 1
    assert not [line for line in lines if '"sample"' in line and not line.startswith("DATA = ")]
