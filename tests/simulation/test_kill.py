"""kill -9 at random moments, and on again: the same model to the last bit."""

import random
import subprocess
import sys
import time
from pathlib import Path

from weights.checkpoint import read_checkpoint
from weights.named import fingerprint

ROUNDS, KILLS = 40, 3
PROGRAM = "from simulation.cli import main; main()"


def command(writers: str, folder: Path) -> list[str]:
    """A run whose state is everywhere: residuals on clients, norms and momentum on the server."""
    codec = "topk:fraction=0.05,feedback=true,threshold=100"
    return [
        *(sys.executable, "-c", PROGRAM, "run", "emnist_lr", "--data", writers, "--cohort", "4"),
        *("--rounds", str(ROUNDS), "--aggregator", "compression", "--codec", codec),
        *("--server-optimizer", "sgd:lr=0.5,momentum=0.9", "--eval-every", "0"),
        *("--logdir", str(folder), "--save", str(folder / "final.safetensors")),
    ]


def newest(folder: Path) -> str:
    """Name of the last checkpoint so far, empty if there is none."""
    return max((path.name for path in folder.glob("checkpoints/round-*")), default="")


def test_a_killed_run_goes_on_to_the_same_model(writers: str, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(writers, straight), check=True, capture_output=True)
    chance = random.Random(7)
    resume: list[str] = []
    for _ in range(KILLS):
        with subprocess.Popen(
            command(writers, killed) + resume, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            before = newest(killed)
            while process.poll() is None and newest(killed) == before:
                time.sleep(0.005)
            time.sleep(chance.uniform(0.0, 0.1))
            process.kill()
        resume = ["--resume"]
    assert newest(killed) < f"round-{ROUNDS:06d}", "the kills came too late to show anything"
    subprocess.run([*command(writers, killed), "--resume"], check=True, capture_output=True)
    models = [read_checkpoint(folder / "final.safetensors")[0] for folder in (straight, killed)]
    assert fingerprint(models[0]) == fingerprint(models[1])
