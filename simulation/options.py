"""Flags of the command, made from the settings schema."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import click

from settings.schema import Settings, flag, key_of

SETTINGS = {item.name: item for item in fields(Settings)}


def settings_options(names: Sequence[str], **words: str) -> Callable[[Any], Any]:
    """A decorator that adds a flag for each of these fields of the settings schema.

    Args:
        names: The fields.
        words: What `--help` says of some of them, where it is not what the schema says.
    """

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            item = SETTINGS[name]
            choices = item.metadata["choices"]
            kind: Any = click.Choice(choices) if choices else item.type
            off = f"/--no-{key_of(item)}" if item.default is True else ""
            command = click.option(
                flag(item) + off,
                name,
                type=None if item.type is bool else kind,
                is_flag=item.type is bool,
                default=item.default,
                show_default=bool(item.default),
                metavar=item.metadata["metavar"] or None,
                help=words.get(name, item.metadata["help"]),
            )(command)
        return command

    return decorate
