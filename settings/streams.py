"""What is printed and logged, so that a run neither ends by what it says nor says more than it has to."""

import io
import logging
import sys

from settings.errors import InputError


def print_anything() -> None:
    r"""Let standard output write `\xe4` for what its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def mistakes_in_one_line() -> None:
    """Let Flower, which logs whatever an app raises with its stack trace, log a user's mistake without."""
    logging.getLogger("flwr").addFilter(_in_one_line)


def _in_one_line(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, InputError):
        record.msg, record.args, record.exc_info = f"{record.getMessage()}: {error}", (), None
    return True
