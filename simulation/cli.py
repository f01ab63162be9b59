"""The `fedferry` command."""

import os
import sys

import click

from settings.errors import InputError, unknown
from settings.streams import print_anything
from simulation.commands.data import download, explore
from simulation.commands.models import convert, export, generate
from simulation.commands.training import compare, evaluate, run


class _Commands(click.Group):
    """A group whose error for an unknown subcommand names the known ones."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The subcommand of that name."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            raise unknown("command", cmd_name, self.commands)
        return command


@click.group(
    cls=_Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # click leaves colours out in a pipe, but does not know of https://no-color.org.
        "color": False if os.environ.get("NO_COLOR") else None,
    },
)
@click.version_option(package_name="fedferry")
def cli() -> None:
    """TensorFlow Federated workloads on PyTorch and Flower, with the same numbers.

    \b
    fedferry run shakespeare               fine-tune the embedded Dickens GRU, offline
    fedferry run emnist_lr --rounds 20     softmax regression on writers' digits
    fedferry run my_module:TASK            a task of your own
    """


for _command in (run, evaluate, compare, explore, download, generate, convert, export):
    cli.add_command(_command)


def _see(error: click.ClickException) -> str:
    """Where the words are explained that click could not take."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" See {context.command_path} --help." if context else ""


def main() -> None:
    """Run the command; a user's mistake is one line on standard error and exit code 2."""
    print_anything()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"fedferry: {error.format_message().removesuffix('.')}.{_see(error)}", err=True)
        sys.exit(2)
    except InputError as error:
        click.echo(f"fedferry: {error}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fedferry: interrupted", err=True)
        sys.exit(130)
