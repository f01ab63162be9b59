"""The `fedferry` command. torch and Flower are imported by the commands, not here: --help is quick."""

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from settings.errors import InputError
from settings.schema import Settings, flag

_SETTINGS = {item.name: item for item in fields(Settings)}
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


def settings_options(names: list[str]) -> Callable[[Any], Any]:
    """A decorator that adds a flag for each of these fields of the settings schema."""

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            item = _SETTINGS[name]
            help_text, choices = item.metadata["help"], item.metadata["choices"]
            kind: Any = click.Choice(choices) if choices else item.type
            declaration = flag(item)
            if item.type is bool and item.default:
                declaration += f"/--no-{name.replace('_', '-')}"
            command = click.option(
                declaration,
                name,
                type=None if item.type is bool else kind,
                is_flag=item.type is bool,
                default=item.default,
                show_default=bool(item.default),
                metavar=item.metadata["metavar"] or None,
                help=help_text,
            )(command)
        return command

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedferry")
def cli() -> None:
    """TensorFlow Federated workloads on PyTorch and Flower, with the same numbers.

    \b
    fedferry run shakespeare               fine-tune the embedded Dickens GRU, offline
    fedferry run emnist_cnn --rounds 20    a CNN on writers' digits
    fedferry run my_module:TASK            a task of your own
    """


@cli.command()
@click.argument("task")
@settings_options([name for name in _SETTINGS if name != "task"])
def run(**values: Any) -> None:
    """Train TASK by federated averaging, all clients inside this process.

    TASK is shakespeare, emnist_lr, emnist_cnn (options: shakespeare:pad=true) or module:attribute.

    \b
    Example: the text tutorial on TFF's own data, the model back into a Keras file
      fedferry run shakespeare --data shakespeare_train.h5 \\
        --init dickens_rnn.batch8.kerasmodel --rounds 5 --cohort 10 \\
        --max-batches 5 --client-optimizer sgd:lr=0.5 --save tuned.kerasmodel
    """
    from simulation.federation import simulate

    simulate(Settings(**values))


@cli.command()
@click.argument("task")
@click.option(
    "--split", type=click.Choice(["train", "test"]), default="test", help="data to evaluate on"
)
@settings_options(list(_EVALUATE))
def evaluate(split: str, **values: Any) -> None:
    """Evaluate a model of TASK on clients' data, federated or centralised.

    \b
    Example: fedferry evaluate shakespeare --cohort 20 --init tuned.kerasmodel
    """
    from simulation.federation import evaluate_once

    click.echo(evaluate_once(Settings(**values), split))


@cli.command()
@click.option("--init", default="", help="checkpoint (default: the embedded Dickens GRU)")
@click.option("--prompt", default=None, help="text to continue (default: the tutorial's)")
@click.option("--length", default=200, show_default=True, help="characters to write")
@click.option("--temperature", default=1.0, show_default=True, help="low is predictable")
@click.option("--seed", default=0, show_default=True)
def generate(init: str, prompt: str | None, length: int, temperature: float, seed: int) -> None:
    """Let a text model continue a prompt.

    \b
    Example: fedferry generate --prompt "To be, or " --temperature 0.7
    """
    from server.initial import initial_model
    from tasks.catalogue import load_task
    from tasks.shakespeare import PROMPT
    from tasks.shakespeare import generate as write

    model = initial_model(load_task("shakespeare"), init, seed)
    beginning = PROMPT if prompt is None else prompt
    click.echo(beginning + write(model, beginning, length, temperature, seed))


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> None:
    """Convert the Keras checkpoint SOURCE to TARGET.safetensors, its architecture included.

    \b
    Example: fedferry convert dickens_rnn.batch8.kerasmodel dickens.safetensors
    """
    from server.initial import SAFETENSORS, save_final
    from weights.keras import load_model

    if target.suffix != SAFETENSORS:
        raise InputError(f"{target}: the name of what is written must end in {SAFETENSORS}")
    model = load_model(source)
    save_final(model, target, None)
    click.echo(f"{target}: {sum(p.numel() for p in model.parameters()):,} parameters")


@cli.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--template",
    required=True,
    type=click.Path(path_type=Path),
    help="Keras checkpoint of the same architecture; its copy gets the arrays",
)
def export(source: Path, target: Path, template: Path) -> None:
    """Write the weights of SOURCE (.safetensors: --save, or a run's checkpoint) into a Keras file.

    \b
    Example: fedferry export tuned.safetensors tuned.kerasmodel \\
               --template dickens_rnn.batch8.kerasmodel
    """
    from weights.checkpoint import model_arrays, read_checkpoint
    from weights.keras import save_model

    arrays, _ = read_checkpoint(source)
    save_model(model_arrays(arrays), template, target)
    click.echo(f"{target}")


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--metric", default="accuracy", show_default=True, help="what the picture shows")
@click.option(
    "--on",
    "side",
    type=click.Choice(["eval", "train"]),
    default="eval",
    show_default=True,
    help="held-out data, or the clients' metrics during training (every round has them)",
)
@click.option("--png", default="compare.png", show_default=True, type=click.Path(path_type=Path))
def compare(runs: tuple[Path, ...], metric: str, side: str, png: Path) -> None:
    """Lay logged RUNS (their logdirs or JSON files) side by side, as a table and a picture.

    \b
    Example: fedferry compare runs/plain runs/compressed --png curves.png
    """
    from rich.console import Console

    from simulation.compare import comparison_table, draw, read_run

    read = [read_run(path) for path in runs]
    Console().print(comparison_table(read))
    draw(read, side, metric, png)
    click.echo(f"picture: {png}")


def main() -> None:
    """Run the command; a user's mistake is one line on standard error and exit code 2."""
    # Before torch starts its threads: those that spin while they wait make a busy machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"fedferry: {error.format_message()}", err=True)
        sys.exit(2)
    except InputError as error:
        click.echo(f"fedferry: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fedferry: interrupted", err=True)
        sys.exit(130)
