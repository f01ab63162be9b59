"""A whole federation in this process: the ServerApp over the in-process grid."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import cast

from flwr.app import Context, RecordDict
from flwr.supercore.logger import update_console_handler

from client.app import app as client_app
from client.app import lookahead
from server.app import app as server_app
from server.console import describe
from server.record import without_nan
from server.rounds import Federation
from settings.errors import InputError, counted
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tasks.data import Split
from weights.files import replacing

# Flower reports every step at INFO; failed clients are warnings.
logging.getLogger("flwr").setLevel(logging.WARNING)
# It writes colours into files and pipes, too.
update_console_handler(colored=sys.stderr.isatty() and not os.environ.get("NO_COLOR"))
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")


def simulate(settings: Settings) -> None:
    """Run server and clients in this process; one node serves the whole population."""
    grid = _grid(settings)
    context = Context(grid.run.run_id, 0, {}, RecordDict(), settings.to_config())
    server_app(grid=grid, context=context)


def in_process(settings: Settings) -> Federation:
    """The federation that `simulate` runs, to be stepped through: `next()`, `evaluate()`, `state()`, `model`."""
    return Federation(settings, _grid(settings))


def _grid(settings: Settings) -> InProcessGrid:
    if settings.min_available_nodes > 1:
        many = settings.min_available_nodes
        raise InputError(
            f"--min-available-nodes {many}: a simulation is one node, and needs no more"
        )
    return InProcessGrid(client_app, settings.to_config(), announce=lookahead.announce)


def evaluate_once(settings: Settings, split: str) -> str:
    """Evaluate the model of `settings.init` on one split.

    Returns:
        The metrics as one line of text; `settings.json` gets them as a file.
    """
    federation = in_process(settings)
    metrics = federation.evaluate(cast(Split, split))
    if settings.json:
        with replacing(Path(settings.json)) as file:
            file.write_text(json.dumps(without_nan(metrics), allow_nan=False))
    examples = counted(int(metrics.get("num_examples", 0)), "example")
    batches = counted(int(metrics.get("num_batches", 0)), "batch", "batches")
    clients = counted(len(federation.cohort.evaluate()), "client")
    return f"{split}: {describe(metrics)} ({examples}, {batches}, {clients})"
