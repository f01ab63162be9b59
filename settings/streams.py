"""What is printed and logged, so that a run neither ends by what it says nor says more than it has to."""

import io
import sys


def print_anything() -> None:
    r"""Let standard output write `\xe4` for what its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
