"""What a run leaves behind: TensorBoard scalars and JSON."""

import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from server.record import Recorder, RoundRecord
from settings.schema import Settings


def record(number: int, loss: float = 1.0) -> RoundRecord:
    failed = {"a": "no memory"} if number == 2 else {}
    comm = {"aggregated_bits": 8 * number, "failures": len(failed), "failed": failed}
    train, evaluated = {"loss": loss, "num_examples": 3}, {"loss": 2 * loss}
    return RoundRecord(number, train, evaluated, comm, {}, 0.5)


def scalars(logdir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(logdir), purge_orphaned_data=True)
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_scalars_are_in_groups_by_round(tmp_path: Path) -> None:
    recorder = Recorder(Settings(), tmp_path, [], {"loss": 9.0})
    recorder.add(record(1, 4.0))
    recorder.add(record(2, 3.0))
    recorder.close()
    logged = scalars(tmp_path)
    assert logged["train/loss"] == [(1, 4.0), (2, 3.0)]
    assert logged["eval/loss"] == [(0, 9.0), (1, 8.0), (2, 6.0)]
    assert logged["comm/aggregated_bits"] == [(1, 8.0), (2, 16.0)]
    assert logged["comm/failures"] == [(1, 0.0), (2, 1.0)]
    assert logged["time/seconds"] == [(1, 0.5), (2, 0.5)]


def test_a_resumed_run_replaces_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    recorder = Recorder(Settings(), tmp_path, [], {})
    for number in (1, 2, 3):
        recorder.add(record(number, 10.0 + number))
    recorder.write()
    resumed = Recorder(Settings(), tmp_path, [record(1)], {})
    for number in (2, 3):
        resumed.add(record(number, 20.0 + number))
    resumed.close()
    assert scalars(tmp_path)["train/loss"] == [(1, 11.0), (2, 22.0), (3, 23.0)]


def test_json_is_strict_where_a_model_diverged(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    recorder = Recorder(Settings(json=str(path)), tmp_path, [], {"loss": math.inf})
    recorder.add(record(1, math.nan))
    recorder.close()

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["before"] == {"loss": None}
    assert content["rounds"][0]["train"] == {"loss": None, "num_examples": 3}


def test_json_holds_settings_and_rounds(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    settings = Settings(json=str(path), seed=4)
    recorder = Recorder(settings, tmp_path, [record(1)], {"loss": 9.0})
    recorder.add(record(2))
    recorder.close()
    content = json.loads(path.read_text())
    assert content["settings"] == settings.to_config()
    assert content["before"] == {"loss": 9.0}
    assert [entry["round"] for entry in content["rounds"]] == [1, 2]
    assert content["rounds"][1]["comm"]["failed"] == {"a": "no memory"}
