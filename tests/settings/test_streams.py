"""What is printed and logged."""

import os
import subprocess
import sys


def test_what_an_encoding_lacks_is_escaped() -> None:
    program = "from settings.streams import print_anything; print_anything(); print('l\\xe4uf')"
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert said.stdout == b"l\\xe4uf\n", said.stderr
