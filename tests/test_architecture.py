"""ARCHITECTURE.md's diagram, held against the imports; pyproject.toml, held against the schema."""

import ast
import tomllib
from pathlib import Path

import pytest

from settings.schema import Settings

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "settings": set(),
    "weights": {"settings"},
    "tasks": {"settings", "weights"},
    "client": {"settings", "weights", "tasks"},
    "server": {"settings", "weights", "tasks"},
    "simulation": {"settings", "weights", "tasks", "client", "server"},
}


def imported(file: Path) -> set[str]:
    """Top-level packages that a file imports, at module level or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("floor", MAY_IMPORT)
def test_a_floor_imports_only_the_floors_below(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for file in files:
        ours = imported(file) & set(MAY_IMPORT) - {floor}
        assert ours <= MAY_IMPORT[floor], f"{file.name} imports {ours - MAY_IMPORT[floor]}"


def test_nothing_unpickles() -> None:
    for file in (file for floor in MAY_IMPORT for file in (ROOT / floor).rglob("*.py")):
        assert not imported(file) & {"pickle", "dill", "cloudpickle", "joblib"}, file
        assert "torch.load" not in file.read_text(), file


def test_flowers_run_config_is_the_schema() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["flwr"]["app"]["config"] == Settings().to_config()
