"""fedferry as a peer: trains as many rounds as a line says, and leaves on disk all that a run does.

Arguments: task (emnist_lr or emnist_cnn), HDF5 file, local epochs, clients, precision. Prints `ready`, then seconds.
"""

import logging
import sys
import tempfile
import time
from pathlib import Path

import settings.threads  # noqa: F401  as our command does, before torch
from server.record import Recorder
from server.saver import Saver
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
    with Saver(folder / "checkpoints", recorder, federation.history) as saver:
        print("ready", flush=True)
        for rounds in sys.stdin:
            started = time.perf_counter()
            for _ in range(int(rounds)):
                federation._leave(saver, federation.next(), {})
            saver.wait()
            print(time.perf_counter() - started, flush=True)
