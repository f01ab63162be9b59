"""kill -9 at random moments of training, evaluation and checkpointing, and on to the same model."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from weights.checkpoint import read_checkpoint
from weights.named import fingerprint

PROGRAM = Path(__file__).with_name("killed.py")
ROUNDS, COHORT = 16, 4
# Kills in each phase, and the calls of its function a life may have had before.
KILLS = {"training": (4, COHORT), "evaluation": (3, COHORT), "checkpoint": (3, 2)}


def test_a_killed_run_goes_on_to_the_same_model(writers: str, tmp_path: Path) -> None:
    """With state everywhere: residuals on clients, norms and momentum on the server."""
    chance = random.Random(7)
    moments = [
        (phase, chance.randint(1, most), chance.random())
        for phase, (kills, most) in KILLS.items()
        for _ in range(kills)
    ]
    chance.shuffle(moments)
    folder = tmp_path / "killed"
    settings = {
        "task": "emnist_lr",
        "data": writers,
        "cohort": str(COHORT),
        "rounds": ROUNDS,
        "aggregator": "compression",
        "codec": "topk:fraction=0.05,feedback=true,threshold=100",
        "server_optimizer": "sgd:lr=0.5,momentum=0.9",
        "logdir": str(folder),
        "save": str(folder / "model.safetensors"),
    }
    files = [tmp_path / "settings.json", tmp_path / "moments.json"]
    for file, content in zip(files, (settings, moments), strict=True):
        file.write_text(json.dumps(content))
    command = [sys.executable, str(PROGRAM), *map(str, files)]
    root = str(PROGRAM.parent.parent.parent)
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert said["lives"] == [-signal.SIGKILL] * len(moments) + [0]
    assert min(said["lengths"].values()) > 100

    straight = Path(f"{folder}-straight")
    models = [read_checkpoint(place / "model.safetensors")[0] for place in (straight, folder)]
    assert fingerprint(models[0]) == fingerprint(models[1])
    # What else the run left is that of one run, too.
    rounds = [
        json.loads((place / "metrics.json").read_text())["rounds"] for place in (straight, folder)
    ]
    for record in (*rounds[0], *rounds[1]):
        del record["seconds"], record["time"]
    assert rounds[0] == rounds[1]
    logged = EventAccumulator(str(folder)).Reload()
    steps = [event.step for event in logged.Scalars("comm/answered")]
    assert steps == list(range(1, ROUNDS + 1))
    assert not list(folder.rglob(".*"))
