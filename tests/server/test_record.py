"""What a run leaves behind: TensorBoard scalars and JSON."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from server.meter import Traffic
from server.record import Recorder, RoundRecord, comm_record, without_nan
from server.strategy import Tally
from settings.schema import Settings


def record(number: int, loss: float = 1.0) -> RoundRecord:
    failed = {"a": "no memory"} if number == 2 else {}
    comm = {"aggregated_bits": 8 * number, "failures": len(failed), "failed": failed}
    train, evaluated = {"loss": loss, "num_examples": 3}, {"loss": 2 * loss}
    norms, time = {"clipping_norm": number / 4}, {"waiting": 0.25}
    return RoundRecord(number, train, evaluated, comm, norms, 0.5, time)


def read(logdir: Path) -> EventAccumulator:
    events = EventAccumulator(str(logdir), purge_orphaned_data=True)
    events.Reload()
    return events


def text(logdir: Path, tag: str) -> list[tuple[int, str]]:
    logged = read(logdir).Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in logged]


def scalars(logdir: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(logdir)
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
    assert logged["time/waiting"] == [(1, 0.25), (2, 0.25)]
    assert logged["aggregator/clipping_norm"] == [(1, 0.25), (2, 0.5)]
    assert logged["final/loss"] == [(0, 6.0)]


def test_what_a_run_ended_with_is_of_training_where_nothing_was_evaluated(tmp_path: Path) -> None:
    recorder = Recorder(Settings(), tmp_path, [], {})
    recorder.close()
    recorder.add(replace(record(1, 4.0), eval={}))
    recorder.close()
    assert scalars(tmp_path)["final/loss"] == [(0, 4.0)]


def test_settings_are_hyperparameters(tmp_path: Path) -> None:
    recorder = Recorder(Settings(seed=4, task="emnist_lr"), tmp_path, [], {})
    recorder.add(record(1))
    recorder.close()
    plugin = read(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data
    values = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert (values["seed"].number_value, values["task"].string_value) == (4, "emnist_lr")


def test_settings_and_samples_are_texts(tmp_path: Path) -> None:
    recorder = Recorder(Settings(seed=4), tmp_path, [], {})
    recorder.add(record(1))
    recorder.add(record(2), "It was\nthe best")
    recorder.flush()
    [(step, table)] = text(tmp_path, "settings")
    assert step == 0
    assert "| seed | 4 |" in table
    assert text(tmp_path, "sample") == [(2, "    It was\n    the best")]


def test_a_round_without_a_checkpoint_is_logged(tmp_path: Path) -> None:
    recorder = Recorder(Settings(), tmp_path, [], {})
    for number in (1, 2, 3):
        recorder.add(record(number))
    recorder.unsaved(replace(record(3), unsaved="no space left"))
    recorder.close()
    assert scalars(tmp_path)["checkpoint/unsaved"] == [(3, 1.0)]
    rounds = json.loads((tmp_path / "metrics.json").read_text())["rounds"]
    assert [each["unsaved"] for each in rounds] == ["", "", "no space left"]


def test_traffic_is_in_bits_and_adds_up_over_rounds() -> None:
    tally = Tally(
        clients="abcdefgh",
        answered=4,
        empty=1,
        non_finite=2,
        metrics_non_finite=3,
        update_non_finite=1,
        largest_share=0.5,
        failures=1,
        failed={"a": "no memory"},
        late=["b", "c", "d"],
        skipped=1,
    )
    first = comm_record(tally, Traffic(1, 2, 3, 4), [])
    bits = {
        "broadcasted_bits": 8,
        "broadcasted_message_bits": 16,
        "aggregated_bits": 24,
        "aggregated_message_bits": 32,
    }
    assert first == bits | {f"cumulative_{name}": value for name, value in bits.items()} | {
        "asked": 8,
        "answered": 4,
        "empty": 1,
        "non_finite": 2,
        "update_non_finite": 1,
        "metrics_non_finite": 3,
        "late": 3,
        "skipped": 1,
        "failures": 1,
        "largest_share": 0.5,
        "failed": {"a": "no memory"},
    }
    last = replace(record(3), comm={"cumulative_aggregated_bits": 100})
    before = [record(1), record(2), last]
    then = comm_record(Tally(), Traffic(10, 20, 30, 40), before)
    assert (then["aggregated_bits"], then["cumulative_aggregated_bits"]) == (240, 340)


def test_a_resumed_run_replaces_what_was_logged_after_its_checkpoint(tmp_path: Path) -> None:
    recorder = Recorder(Settings(), tmp_path, [], {"loss": 9.0})
    for number in (1, 2, 3, 4):
        recorder.add(record(number, 10.0 + number))
    recorder.flush()
    resumed = Recorder(Settings(), tmp_path, [record(1), record(2)], {"loss": 9.0})
    for number in (3, 4):
        resumed.add(record(number, 20.0 + number))
    resumed.close()
    logged = scalars(tmp_path)
    assert logged["train/loss"] == [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0)]
    assert [step for step, _ in logged["eval/loss"]] == [0, 1, 2, 3, 4]


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


def test_what_is_no_number_is_null_in_lists_too() -> None:
    assert without_nan({"a": [math.nan, 1.0, [math.inf]], "b": "x"}) == {
        "a": [None, 1.0, [None]],
        "b": "x",
    }


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
