"""What a run need not load."""

import subprocess
import sys

_IMPORTS = """
import sys
import client.app, server.app, simulation.federation
sys.exit("sqlalchemy" in sys.modules)
"""


def test_a_run_does_not_load_a_superlink() -> None:
    """Its database alone takes a third of a second at every start."""
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
