"""fedferry as a peer: trains a round for each line that it reads, with all that it leaves on disk.

Arguments: task (emnist_lr or emnist_cnn), HDF5 file, local epochs, clients, precision. Prints `ready`, then seconds.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import settings.threads  # noqa: F401  as our command does, before torch
from server.record import Recorder
from settings.schema import Settings
from simulation.federation import in_process
from tasks.catalogue import load_task

logging.getLogger("flwr").setLevel(logging.WARNING)
TASK, PATH, EPOCHS, CLIENTS, PRECISION = sys.argv[1:]

with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    names = list(load_task(TASK).population(PATH, "train").client_ids)[: int(CLIENTS)]
    federation = in_process(
        Settings(
            task=TASK,
            data=PATH,
            client_ids=",".join(names),
            rounds=10_000,
            local_epochs=int(EPOCHS),
            eval_every=0,
            precision=PRECISION,
            logdir=place,
        )
    )
    recorder = Recorder(federation.settings, folder, [], {})
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        federation._leave(folder, recorder, federation.next())
        print(time.perf_counter() - started, flush=True)
