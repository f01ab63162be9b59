"""The compression frontier: bytes, error and accuracy of every codec on the EMNIST CNN.

    python benchmarks/frontier.py --data digits_by_writer_train.h5 --out runs/frontier --seeds 0,1,2

Each codec trains the compression tutorial's CNN for 40 rounds: 10 sampled writers a round, 5 local epochs,
client SGD 0.1, evaluated on all held-out data. Finished runs are kept, so that the command can be
stopped and started again. Ends with a Markdown table and a PNG.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from simulation.compare import Run, read_run

ROUNDS = 40
CODECS = {
    "raw": ["--codec", "identity"],
    "float16": ["--codec", "float16"],
    "bfloat16": ["--codec", "bfloat16"],
    "uniform 8": ["--codec", "uniform:bits=8"],
    "step 2.35": ["--codec", "step:bits=2.35,rounding=nearest"],
    "step 1.06": ["--codec", "step:bits=1.06,rounding=nearest"],
    "step 1.06, stochastic": ["--codec", "step:bits=1.06"],
    "step 0.5": ["--codec", "step:bits=0.5,rounding=nearest"],
    "adaptive 250 kB": ["--codec", "adaptive:budget=250000"],
    "adaptive 135 kB": ["--codec", "adaptive:budget=135000"],
    "eden 4": ["--codec", "eden:bits=4"],
    "eden 2": ["--codec", "eden:bits=2"],
    "eden 1": ["--codec", "eden:bits=1"],
    "topk 2%, feedback": ["--codec", "topk:fraction=0.02,feedback=true"],
    "step 1.06, broadcast uniform 8": [
        *("--codec", "step:bits=1.06,rounding=nearest"),
        *("--broadcast-codec", "uniform:bits=8,entropy=true"),
    ],
}


@dataclass(frozen=True)
class Row:
    """One codec over its seeds: means, and the spread of the accuracy."""

    name: str
    kilobytes_up: float
    kilobytes_down: float
    accuracy: float
    spread: float
    seeds: int


def train(data: str, folder: Path, flags: list[str], seed: int) -> None:
    """One run, unless it is there already."""
    if (folder / "metrics.json").exists() and len(read_run(folder).rounds) == ROUNDS:
        return
    resume = ["--resume"] if list(folder.glob("checkpoints/round-*")) else []
    command = [sys.executable, "-c", "from simulation.cli import main; main()"]
    command += ["run", "emnist_cnn", "--data", data, "--rounds", str(ROUNDS), "--cohort", "10"]
    command += ["--local-epochs", "5", "--client-optimizer", "sgd:lr=0.1", "--seed", str(seed)]
    command += ["--aggregator", "compression", "--eval-every", "10", "--eval-cohort", "all"]
    command += [*flags, "--logdir", str(folder), *resume]
    # One thread a run: runs side by side are faster than threads inside one.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    print(f"{folder.name}: {last[0] if last else ''}", flush=True)


def summarise(name: str, runs: list[Run]) -> Row:
    """Bytes a client sends and gets in a round after the first, and the final accuracy."""
    later = [item["comm"] for run in runs for item in run.rounds[1:]]

    def kilobytes(bits: str) -> float:
        return statistics.fmean(comm[bits] / comm["asked"] / 8e3 for comm in later)

    final = [100 * run.last_evaluation["accuracy"] for run in runs]
    return Row(
        name,
        kilobytes("aggregated_bits"),
        kilobytes("broadcasted_bits"),
        statistics.fmean(final),
        max(final) - min(final),
        len(final),
    )


def table(rows: list[Row]) -> str:
    """Markdown; ratio and loss of accuracy against the first row."""
    raw = rows[0]
    lines = [
        "| codec | kB up | ratio | kB down | accuracy | against raw | spread | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.kilobytes_up:,.1f} | {raw.kilobytes_up / row.kilobytes_up:.1f} "
            f"| {row.kilobytes_down:,.0f} | {row.accuracy:.2f}% | {row.accuracy - raw.accuracy:+.2f} "
            f"| {row.spread:.2f} | {row.seeds} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy against kilobytes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for row, marker in zip(rows, itertools.cycle("os^vD<>PX*ph8d"), strict=False):
        bar = row.spread / 2
        axes.errorbar(row.kilobytes_up, row.accuracy, bar, fmt=marker, capsize=3, label=row.name)
    axes.set(
        xscale="log",
        xlabel="kilobytes from a client in a round",
        ylabel=f"held-out accuracy after {ROUNDS} rounds, % (bars: range over seeds)",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="TFF's EMNIST layout, ..._train.h5")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="codecs whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    chosen = {name: flags for name, flags in CODECS.items() if options.only in name}
    folders = {
        (name, seed): options.out / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}"
        for seed in seeds
        for name in chosen
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        for (name, seed), folder in folders.items():
            pool.submit(train, options.data, folder, chosen[name], seed)
    rows = []
    for name in chosen:
        runs = [read_run(folders[name, seed]) for seed in seeds]
        rows.append(summarise(name, runs))
    print(table(rows))
    draw(rows, options.out / "frontier.png")


if __name__ == "__main__":
    main()
