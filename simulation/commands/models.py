"""`fedferry generate`, `convert` and `export`: what a model writes, and its files."""

from pathlib import Path

import click

from settings.errors import InputError
from settings.schema import Settings
from simulation.options import settings_options


@click.command()
@settings_options(["init"], init="checkpoint (empty: the embedded Dickens GRU)")
@click.option("--prompt", default=None, help="text to continue (default: the tutorial's)")
@click.option("--length", default=200, show_default=True, help="characters to write")
@click.option(
    "--temperature", default=1.0, show_default=True, help="low is predictable; 0: the likeliest"
)
@click.option("--top-k", default=0, help="sample among so many likeliest characters (0: all)")
@settings_options(["seed"], seed="the same seed writes the same text")
@click.option(
    "--samples", default=1, show_default=True, help="texts to write, of seed, seed + 1, ..."
)
def generate(
    init: str,
    prompt: str | None,
    length: int,
    temperature: float,
    top_k: int,
    seed: int,
    samples: int,
) -> None:
    """Let a text model continue a prompt, character by character.

    \b
    Example: three texts, none of them too wild
      fedferry generate --prompt "To be, or " --temperature 0.7 --samples 3
    """
    from server.initial import initial_model
    from tasks.catalogue import load_task
    from tasks.text import PROMPT, stream

    if samples < 1:
        raise InputError(f"--samples must be at least 1, but is {samples}")
    settings = Settings(init=init, seed=seed)
    model = initial_model(load_task("shakespeare"), settings.init, settings.seed)
    beginning = PROMPT if prompt is None else prompt
    for number in range(samples):
        characters = stream(model, beginning, length, temperature, seed + number, top_k)
        if samples > 1:
            click.secho(f"{'' if number == 0 else chr(10)}--- seed {seed + number}", dim=True)
        click.secho(beginning, nl=False, bold=True)
        for character in characters:
            click.echo(character, nl=False)
        click.echo()


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> None:
    """Convert a Keras checkpoint to .safetensors.

    TARGET gets the weights and the architecture of SOURCE.

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


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--template",
    required=True,
    type=click.Path(path_type=Path),
    help="Keras checkpoint of the same architecture; its copy gets the arrays",
)
def export(source: Path, target: Path, template: Path) -> None:
    """Write weights back into a Keras file.

    SOURCE is a .safetensors file: of `run --save`, of `convert`, or a checkpoint in a run's logdir.

    \b
    Example: fedferry export tuned.safetensors tuned.kerasmodel \\
               --template dickens_rnn.batch8.kerasmodel
    """
    from server.initial import SAFETENSORS
    from weights.checkpoint import model_arrays, read_checkpoint
    from weights.keras import save_model

    if target.suffix == SAFETENSORS:
        raise InputError(f"{target}: what is written is a Keras file, not {SAFETENSORS}")
    arrays, _ = read_checkpoint(source)
    save_model(model_arrays(arrays), template, target)
    click.echo(f"{target}")
