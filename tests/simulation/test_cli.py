"""The command as a user types it: what it prints and writes."""

import io
import json
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.simulation.conftest import Command

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plays(tmp_path: Path) -> Path:
    """TFF's layout in small: one client with text, one whose text is too short, one without any."""
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"mini_{split}.h5", "w") as file:
            text = np.array([b"To be, or not to be: that is the question. " * 60], dtype=object)
            strings = h5py.string_dtype()
            file.create_dataset("examples/HAMLET/snippets", data=text, dtype=strings)
            file.create_dataset("examples/GHOST/snippets", data=[b"Boo"], dtype=strings)
            file.create_dataset("examples/YORICK/snippets", shape=(0,), dtype=strings)
    return tmp_path / "mini_train.h5"


def test_a_client_without_data_is_skipped_and_counted(fedferry: Command, plays: Path) -> None:
    code, out, _ = fedferry(
        *("run", "shakespeare:sequence_length=20", "--data", str(plays), "--cohort", "all"),
        *("--rounds", "1", "--max-batches", "1", "--json", "run.json", "--logdir", "run"),
    )
    assert code == 0, out
    [round_one] = json.loads(Path("run.json").read_text())["rounds"]
    assert round_one["comm"]["asked"] == 3
    assert round_one["comm"]["empty"] == 2
    assert round_one["train"]["num_examples"] == 8
    assert round_one["eval"]["num_examples"] > 0


def test_one_of_each_is_singular(fedferry: Command, plays: Path) -> None:
    task, data = "shakespeare:sequence_length=20", ("--data", str(plays))
    few = ("--client-ids", "HAMLET", "--batch-size", "1")
    _, out, err = fedferry(
        *("run", task, *data, *few, "--rounds", "1", "--max-batches", "1", "--eval-every", "0")
    )
    assert "shakespeare: 1 round, 1 client a round, batch 1" in out, err
    _, out, err = fedferry("evaluate", task, *data, *few, "--eval-batches", "1")
    assert "(1 example, 1 batch, 1 client)" in out, err
    _, out, err = fedferry("explore", task, *data, "--clients", "1", "--seed", "1")
    assert "1 client, 1 snippet\n" in out, err


def test_a_cohort_larger_than_the_population_is_said(fedferry: Command, plays: Path) -> None:
    words = ("shakespeare:sequence_length=20", "--data", str(plays), "--cohort", "1000")
    _, out, err = fedferry("run", *words, "--rounds", "1", "--max-batches", "1")
    assert "1 round, 3 clients a round (all there are), " in out, err
    assert "on held-out data\n" in out
    _, out, err = fedferry(
        *("run", *words[:3], "--cohort", "2", "--eval-cohort", "9", "--rounds", "1"),
        *("--max-batches", "1"),
    )
    assert "2 clients a round, " in out, err
    assert "on held-out data of 3 clients (all there are)\n" in out
    _, out, err = fedferry("evaluate", *words)
    assert ", 3 clients)" in out, err


def test_a_terminal_without_the_characters_costs_no_run(
    fedferry: Command, plays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    code, _, err = fedferry(
        *("run", "shakespeare:sequence_length=20", "--data", str(plays), "--rounds", "1"),
        *("--cohort", "1", "--max-batches", "1", "--logdir", "l\xe4ufe"),
    )
    assert code == 0, err
    ascii_only.seek(0)
    assert "--logdir l\\xe4ufe" in ascii_only.read()


def test_readmes_own_task_trains(fedferry: Command, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    [code] = re.findall(r"<!-- my_task.py -->\n```python\n(.*?)```", readme, re.DOTALL)
    (tmp_path / "my_task.py").write_text(code)
    status, out, err = fedferry(
        *("run", "my_task:TASK", "--data", "none", "--rounds", "5", "--json", "run.json"),
        *("--logdir", "run", "--save", "mine.safetensors"),
    )
    assert status == 0, err
    run = json.loads(Path("run.json").read_text())
    assert run["rounds"][-1]["eval"]["accuracy"] > run["before"]["accuracy"] + 0.2
    assert Path("mine.safetensors").exists()
    assert "clouds: 5 rounds" in out


def test_the_documented_codec_trains(fedferry: Command, tmp_path: Path, writers: str) -> None:
    page = (ROOT / "docs/compression.md").read_text()
    [code] = re.findall(r"<!-- my_codec.py -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_codec.py").write_text(code)
    for name, codec in (
        ("plain", "identity"),
        ("sign", "my_codec:Sign:threshold=100,feedback=true"),
    ):
        status, _, err = fedferry(
            *("run", "emnist_lr", "--data", writers, "--codec", codec, "--rounds", "6"),
            *("--cohort", "all", "--logdir", name),
        )
        assert status == 0, err
    plain, sign = (json.loads(Path(name, "metrics.json").read_text()) for name in ("plain", "sign"))
    assert sign["rounds"][-1]["eval"]["loss"] < sign["before"]["loss"]
    sent = [run["rounds"][-1]["comm"]["aggregated_bits"] for run in (sign, plain)]
    assert sent[0] < sent[1] / 20
    status, out, _ = fedferry("compare", "plain", "sign", "--png", "both.png")
    assert status == 0
    assert "my_codec:Sign" in out
    assert Path("both.png").exists()


def test_emnist_on_the_embedded_digits_learns_and_logs(fedferry: Command) -> None:
    pytest.importorskip("sklearn")
    code, out, _ = fedferry(
        *("run", "emnist_lr", "--rounds", "4", "--cohort", "10", "--local-epochs", "5"),
        *("--json", "run.json", "--logdir", "run"),
    )
    assert code == 0
    run = json.loads(Path("run.json").read_text())
    assert [item["round"] for item in run["rounds"]] == [1, 2, 3, 4]
    assert run["rounds"][-1]["eval"]["accuracy"] > run["before"]["accuracy"] + 0.2
    bits = [item["comm"]["cumulative_aggregated_bits"] for item in run["rounds"]]
    # 7,850 float32 from each of 10 clients, and a small header for each of two arrays.
    assert bits[0] == pytest.approx(10 * 7850 * 32, rel=0.01)
    assert bits == [bits[0] * (index + 1) for index in range(4)]
    assert list(Path("run").glob("events.out.tfevents.*"))
    assert "tensorboard --logdir run" in out


def test_convert_and_export_bring_back_the_same_arrays(fedferry: Command) -> None:
    source = ROOT / "weights" / "dickens_rnn.batch8.kerasmodel"
    assert fedferry("convert", str(source), "d.safetensors")[0] == 0
    status = fedferry("export", "d.safetensors", "d.kerasmodel", "--template", str(source))
    assert status[0] == 0, status
    before, after = h5py.File(source), h5py.File("d.kerasmodel")
    names: list[str] = []
    before.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    assert len(names) == 6
    for name in names:
        np.testing.assert_array_equal(before[name][()], after[name][()])


def test_generate_is_repeatable(fedferry: Command) -> None:
    first = fedferry("generate", "--length", "20", "--prompt", "To be")
    assert first[0] == 0
    assert len(first[1]) == len("To be") + 20 + 1
    assert fedferry("generate", "--length", "20", "--prompt", "To be") == first
    assert fedferry("generate", "--length", "20", "--prompt", "To be", "--seed", "1") != first


def test_generate_writes_several_samples(fedferry: Command) -> None:
    words = ["generate", "--length", "9", "--prompt", "To be"]
    single = {seed: fedferry(*words, "--seed", seed)[1] for seed in ("4", "5")}
    code, out, _ = fedferry(*words, "--seed", "4", "--samples", "2")
    assert code == 0
    assert out == f"--- seed 4\n{single['4']}\n--- seed 5\n{single['5']}"
    greedy = [fedferry(*words, "--temperature", "0", "--seed", seed) for seed in ("1", "2")]
    assert greedy[0] == greedy[1]


def test_help_teaches(fedferry: Command) -> None:
    code, out, _ = fedferry("run", "--help")
    assert code == 0
    assert "Example" in out
    for flag in ("--data", "--init", "--cohort", "--client-optimizer", "--resume", "--json"):
        assert flag in out
