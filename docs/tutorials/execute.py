"""Execute the tutorials: `python docs/tutorials/execute.py [--write] [NOTEBOOK ...]`.

Copies with fresh outputs go to runs/tutorials; with --write the notebooks themselves get them. The first
error ends it, with the cell and its traceback.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

import settings.threads  # noqa: F401  the notebooks' kernels get its environment

HERE = Path(__file__).parent
NOTEBOOKS = [
    HERE / f"{name}.ipynb" for name in ("text_generation", "image_classification", "compression")
]
TIMEOUT = 900
"""Seconds for one cell."""


def execute(notebook: Path, target: Path) -> None:
    """Run a notebook in a fresh kernel and write it with its outputs, without what differs from run to run."""
    content = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in the file system: nothing listens on a port.
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        client = NotebookClient(content, config=config, timeout=TIMEOUT, record_timing=False)
        client.coalesce_streams = True
        client.execute()
    content.metadata["language_info"] = {"name": "python"}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, target)


def main() -> None:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS)
    parser.add_argument(
        "--write", action="store_true", help="put the outputs into the notebooks themselves"
    )
    arguments = parser.parse_args()
    for notebook in arguments.notebooks:
        target = notebook if arguments.write else Path("runs/tutorials") / notebook.name
        print(f"{notebook.name} ...", end=" ", flush=True)
        started = time.perf_counter()
        try:
            execute(notebook, target)
        except CellExecutionError as error:
            sys.exit(f"failed\n{error}")
        print(f"{time.perf_counter() - started:.0f} s: {target}", flush=True)


if __name__ == "__main__":
    main()
