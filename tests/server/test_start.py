"""What a run need not load."""

import subprocess
import sys

_IMPORTS = """
import sys
import client.app, server.app, simulation.federation
sys.exit(", ".join({"sqlalchemy", "llvmlite"} & sys.modules.keys()) or None)
"""


def test_a_run_loads_neither_a_superlink_nor_llvm_before_it_has_to() -> None:
    """The former's database alone takes a third of a second at every start."""
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True)
