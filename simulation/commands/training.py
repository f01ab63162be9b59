"""`fedferry run`, `evaluate` and `compare`: train, and see how well."""

from pathlib import Path
from typing import Any

import click

from settings.schema import Settings
from simulation.options import SETTINGS, settings_options

_EVALUATE = (
    "data",
    "init",
    "cohort",
    "client_ids",
    "batch_size",
    "eval_batches",
    "evaluation",
    "seed",
    "json",
)


@click.command()
@click.argument("task")
@settings_options([name for name in SETTINGS if name != "task"])
def run(**values: Any) -> None:
    """Train TASK by federated averaging, in this process.

    TASK is shakespeare, emnist_lr, emnist_cnn (options: shakespeare:pad=true) or module:attribute.

    \b
    Example: the text tutorial on TFF's own data, the model back into a Keras file
      fedferry run shakespeare --data shakespeare_train.h5 \\
        --init dickens_rnn.batch8.kerasmodel --rounds 5 --cohort 10 \\
        --max-batches 5 --client-optimizer sgd:lr=0.5 --save tuned.kerasmodel
    """
    from simulation.federation import simulate

    simulate(Settings(**values))


@click.command()
@click.argument("task")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="test",
    show_default=True,
    help="data to evaluate on",
)
@settings_options(
    _EVALUATE,
    init="checkpoint to evaluate (Keras or fedferry's .safetensors; `dickens`: downloaded). Without it: the "
    "task's own checkpoint (shakespeare: Dickens), or a model drawn from --seed",
    cohort="clients that evaluate, drawn once",
    client_ids="evaluate on exactly these clients (empty: a sample of --cohort)",
    seed="seed of the initial model and of which clients are drawn",
    evaluation="who evaluates: the clients, or the server on the same clients' data",
    json="write the metrics here",
)
def evaluate(split: str, **values: Any) -> None:
    """Evaluate a model of TASK on clients' data.

    \b
    Example: fedferry evaluate shakespeare --cohort 20 --init tuned.kerasmodel
    """
    from simulation.federation import evaluate_once

    click.echo(evaluate_once(Settings(**values), split))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--metric", default="", help="what the picture shows (default: accuracy, or the loss)"
)
@click.option(
    "--on",
    "side",
    type=click.Choice(["eval", "train"]),
    default="eval",
    show_default=True,
    help="held-out data, or the clients' metrics during training (every round has them)",
)
@click.option(
    "--png",
    default="compare.png",
    show_default=True,
    type=click.Path(path_type=Path),
    help="where the picture goes: a .png, .svg, .pdf or .jpg",
)
def compare(runs: tuple[Path, ...], metric: str, side: str, png: Path) -> None:
    """Lay logged RUNS side by side, as a table and a picture.

    A run is its logdir, or the file that --json wrote.

    \b
    Example: fedferry compare runs/plain runs/compressed --png curves.png
    """
    from rich.console import Console

    from simulation.compare import chosen_metric, comparison_table, draw, read_run
    from simulation.figures import check_picture

    check_picture(png)
    read = [read_run(path) for path in runs]
    metric = chosen_metric(read, side, metric)
    Console().print(comparison_table(read))
    draw(read, side, metric, png)
    click.echo(f"picture: {png}")
