"""What a user can get wrong: always one line that names the bad thing, exit code 2, and no stack trace."""

import json
import logging
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.simulation.conftest import Command

ROOT = Path(__file__).parents[2]
DICKENS = str(ROOT / "weights/dickens_rnn.batch8.kerasmodel")


@pytest.fixture(autouse=True)
def litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and modules that are not what the words below take them for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Its handler keeps the standard error of the test that loaded Flower.
    monkeypatch.setattr(logging.getLogger("flwr"), "disabled", True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "bad.json").write_text("{}")
    with h5py.File(tmp_path / "odd_train.h5", "w") as file:
        file["pictures"] = [1, 2, 3]
    (tmp_path / "lacking.py").write_text("\nimport no_such_thing\n")
    (tmp_path / "misspelt.py").write_text("def (:\n")
    (tmp_path / "raising.py").write_text("\n\n1 / 0\n")
    (tmp_path / "number.py").write_text("TASK = 3\n")
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "settings": {"codec": "identity"},
                "rounds": [{"round": 1, "eval": {"loss": 1.0}, "train": {}, "comm": {}}],
            }
        )
    )
    for split in ("train", "test"):
        with h5py.File(tmp_path / f"small_{split}.h5", "w") as file:
            file["examples/a/pixels"] = np.zeros((3, 5, 5))
            file["examples/a/label"] = [1, 2, 3]
        with h5py.File(tmp_path / f"text_{split}.h5", "w") as file:
            file["examples/a/snippets"] = np.array([b"x" * 2000], dtype=object)
        with h5py.File(tmp_path / f"nobody_{split}.h5", "w") as file:
            file.create_group("examples")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("trian emnist_lr", ["'trian'", "run, evaluate, compare"]),
        ("run", ["'TASK'", "See fedferry run --help"]),
        ("run emnist_lr more", ["argument (more). See fedferry run --help.\n"]),
        ("run shakespear", ["'shakespear'", "shakespeare, emnist_lr"]),
        ("run shakespeare:pda=true", ["'pda'", "pad"]),
        ("run shakespeare:pad=perhaps", ["pad", "true or false"]),
        ("run no_module:TASK", ["no_module"]),
        ("run emnist_lr --cohrt 3", ["--cohrt", "--cohort"]),
        ("--cohort 3", ["--cohort", "See fedferry --help"]),
        ("run emnist_lr --rounds many", ["--rounds", "many"]),
        ("run emnist_lr --rounds 0", ["--rounds"]),
        ("run emnist_lr --weighting fair", ["fair", "examples", "uniform"]),
        ("run emnist_lr --cohort 0", ["--cohort", "1 or more", "'0'"]),
        ("run emnist_lr --cohort most", ["--cohort", "most"]),
        ("run emnist_lr --client-ids synthetic_0007", ["nearest are synthetic_000"]),
        ("run emnist_lr --batch-size -1", ["--batch-size", "-1"]),
        ("run shakespeare --data odd_train.h5", ["odd_train.h5", "examples"]),
        ("run emnist_lr --data text.txt", ["text.txt is damaged, or not"]),
        ("run emnist_lr --data nobody_train.h5", ["no client"]),
        ("run emnist_lr --data small_train.h5", ["client 'a'", "(3,784)", "pixels (3, 5, 5)"]),
        ("run emnist_lr --data text_train.h5", ["client 'a'", "no feature 'pixels'", "snippets"]),
        ("run shakespeare --data small_train.h5", ["no feature 'snippets'", "label (3,)"]),
        ("run emnist_lr --data tff", ["fedferry download emnist-digits"]),
        ("run emnist_lr --data sampel", ["sampel: no such file; did you mean sample?"]),
        ("run emnist_lr --data hf:", ["hf:flwrlabs/femnist"]),
        ("run shakespeare --init dickens", ["fedferry download dickens"]),
        ("run shakespeare --init dikens", ["dikens: no such file; did you mean dickens?"]),
        (f"run emnist_cnn --init {DICKENS}", ["another architecture", "emnist_cnn"]),
        ("run emnist_lr --init text.txt", ["text.txt: not a readable HDF5 file"]),
        ("run lacking:TASK", ["cannot import lacking", "no_such_thing", "lacking.py, line 2"]),
        ("run misspelt:TASK", ["cannot import misspelt", "misspelt.py, line 1"]),
        ("run raising:TASK", ["ZeroDivisionError", "raising.py, line 3"]),
        ("run number:TASK", ["is a int, not a tasks.task.Task"]),
        ("run number:TSK", ["unknown attribute of number 'TSK': choose from TASK"]),
        ("run :TASK", ["':TASK'"]),
        ("run emnist_lr --logdir text.txt/x", ["text.txt/x: cannot be written"]),
        ("run emnist_lr --json folder", ["folder: cannot be written: it is a folder"]),
        ("run emnist_lr --save text.txt/x.safetensors", ["text.txt/x.safetensors: cannot be"]),
        ("run emnist_lr --save x.h5", ["x.h5", ".safetensors"]),
        ("run emnist_lr --resume", ["--logdir"]),
        ("run emnist_lr --resume --logdir none", ["none", "nothing to resume"]),
        ("run emnist_lr --seed -1", ["--seed must not be negative"]),
        ("run emnist_lr --seed 9223372036854775808", ["--seed must be under 2^63"]),
        ("run emnist_lr --codec zip", ["unknown codec 'zip'", "uniform", "adaptive"]),
        ("run emnist_lr --json /dev/null", ["/dev/null: cannot be written: it is a device"]),
        ("run emnist_lr --min-available-nodes 2", ["a simulation is one node"]),
        ("run emnist_lr --client-ids ,", ["--client-ids ',' names nobody"]),
        ("run emnist_lr --client-optimizer sdg:lr=1", ["'sdg'", "sgd, adam"]),
        ("run emnist_lr --client-optimizer sgd", ["needs lr"]),
        ("run emnist_lr --server-optimizer adam:lr=x", ["adam:lr", "'x'"]),
        ("run emnist_lr --server-optimizer adam:lr=1,beta_1=2", ["beta_1"]),
        ("run emnist_lr --client-optimizer sgd:lr=1,lr=2", ["gives lr twice"]),
        ("run emnist_lr --client-optimizer torch.Adam:lr=1,betas=0.9", ["torch.Adam: ", "range"]),
        ("run emnist_lr --client-optimizer os:system", ["client optimizer os:system: expected"]),
        ("run emnist_lr --client-optimizer sgd:lr=-1", ["sgd", "-1"]),
        ("run emnist_lr --over-select 0.5", ["--over-select must be at least 1"]),
        ("run emnist_lr --over-select 2 --client-ids a", ["--over-select", "--client-ids"]),
        ("run emnist_lr --eval-every 0 --eval-cohort 3", ["--eval-cohort", "--eval-every 0"]),
        ("evaluate emnist_lr --split dev", ["'dev'", "'train', 'test'"]),
        ("evaluate emnist_lr --data text_train.h5", ["no feature 'pixels'"]),
        ("generate --init text.txt", ["text.txt: not a readable HDF5 file"]),
        ("generate --prompt Grüße", ["'ü' at position 3", "86"]),
        ("generate --prompt ", ["prompt is empty"]),
        ("generate --temperature -1", ["temperature"]),
        ("generate --samples 0", ["--samples"]),
        ("generate --length -1", ["must be 0 or more"]),
        ("generate --seed 9223372036854775808", ["--seed must be under 2^63"]),
        ("convert a.h5 b.h5", [".safetensors"]),
        ("convert text.txt x.safetensors", ["text.txt: not a readable HDF5 file"]),
        (f"convert {DICKENS} text.txt/x.safetensors", ["text.txt/x.safetensors: cannot be"]),
        (f"export text.txt x.h5 --template {DICKENS}", ["text.txt is not a safetensors file"]),
        (f"export text.txt text.safetensors --template {DICKENS}", ["is a Keras file, not"]),
        ("compare folder", ["folder/metrics.json: no such file"]),
        ("compare run.json --png a.gif", ["a.gif: the name of a picture must end in .png, .svg"]),
        ("compare run.json --png new/", ["new: the name of a picture must end in .png"]),
        ("compare bad.json", ["bad.json is not the JSON file of a run"]),
        ("explore", ["'TASK'"]),
        ("explore emnist_lr --data text_train.h5", ["client 'a'", "no feature 'pixels'"]),
        ("explore emnist_lr --data small_train.h5", ["client 'a'", "pixels (3, 5, 5)"]),
        ("explore emnist_lr --data nobody_train.h5", ["no client has an example"]),
        ("explore shakespeare --data text_train.h5 --clients 0", ["--clients", "'0'"]),
        ("explore shakespeare --data text_train.h5 --client-ids b", ["'b'", "choose from a"]),
        ("explore shakespeare --data text_train.h5 --logdir text.txt", ["text.txt"]),
        ("explore shakespeare --data text_train.h5 --seed -1", ["--seed must not be negative"]),
        ("download", ["Missing argument"]),
        ("download cifar", ["'cifar'", "shakespeare, emnist, emnist-digits, dickens"]),
    ],
    ids=lambda value: value.replace(DICKENS, "DICKENS") if isinstance(value, str) else "",
)
def test_a_mistake(fedferry: Command, words: str, parts: list[str]) -> None:
    code, _, err = fedferry(*words.split(" "))
    assert code == 2, err
    assert err.startswith("fedferry: ")
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err, err


@pytest.mark.parametrize(
    "words",
    [
        "run emnist_lr --data X",
        "run emnist_lr --init X",
        "run emnist_lr --init X.safetensors",
        "evaluate emnist_lr --init X",
        "explore emnist_lr --data X",
        "generate --init X",
        "convert X x.safetensors",
        "export X x.h5 --template y.h5",
        "compare X.json",
    ],
)
def test_a_file_that_is_not_there(fedferry: Command, words: str) -> None:
    code, _, err = fedferry(*words.split(" "))
    file = next(word for word in words.split(" ") if word.startswith("X"))
    assert (code, err) == (2, f"fedferry: {file}: no such file\n")
    Path(file).mkdir()
    said = "/metrics.json: no such file" if "compare" in words else ": a folder, not a file"
    assert fedferry(*words.split(" "))[2] == f"fedferry: {file}{said}\n"


def test_a_metric_that_no_run_has(fedferry: Command) -> None:
    pytest.importorskip("matplotlib")
    run = json.loads(Path("run.json").read_text())
    for bits in ("aggregated", "broadcasted"):
        run["rounds"][0]["comm"][f"cumulative_{bits}_bits"] = 8
    Path("run.json").write_text(json.dumps(run))
    code, out, err = fedferry("compare", "run.json", "--metric", "accurcy")
    assert (code, out) == (2, "")
    assert "unknown eval metric 'accurcy': choose from loss" in err
    assert not Path("compare.png").exists()


def test_every_commands_help_has_an_example(fedferry: Command) -> None:
    from simulation.cli import cli

    assert fedferry("--help")[0] == 0
    for name in cli.commands:
        code, out, _ = fedferry(name, "--help")
        assert code == 0
        assert f"fedferry {name}" in out.split("Example")[1], name
        assert max(map(len, out.splitlines())) <= 80, name


def test_without_matplotlib(fedferry: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = fedferry("explore", "shakespeare", "--data", "text_train.h5")
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'fedferry[plot]'" in err
