"""How `deploy/compare.py` judges, without the runs."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import compare
from settings.schema import Settings
from weights.checkpoint import write_checkpoint


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 1, "2.98e-05, over the tolerance of 1e-06"),
        (["--tolerance", "1e-4"], 0, "2.98e-05, within the tolerance of 0.0001"),
    ],
)
def test_the_tolerance_decides(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def simulated(settings: Settings) -> None:
        write_checkpoint(Path(settings.save), {"weight": np.zeros(3, np.float32)}, {})

    def deployed(out: Path, nodes: int, config: dict[str, Any], kills: int, seed: int) -> None:
        weight = np.array([0, -2.98e-5, 0], np.float32)
        write_checkpoint(Path(config["save"]), {"weight": weight}, {})

    monkeypatch.setattr(compare, "simulate", simulated)
    monkeypatch.setattr(compare, "deploy", deployed)
    monkeypatch.setattr(compare, "end_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit) as end:
        compare.main()
    assert end.value.code == code
    assert f"largest difference between the final models: {said}\n" in capsys.readouterr().out
