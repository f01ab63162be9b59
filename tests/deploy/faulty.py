"""`emnist_lr` whose clients misbehave when told: a task that the tests' processes load by name.

Beside the data file there may be a file `CLIENT.faults`, a line for each message that the client gets: `raise`,
`hang`, `wait` (until the file `CLIENT.go` is there) or `fine`. A line is used up before it is obeyed, and
`CLIENT.reached` says that it was.
"""

import time
from dataclasses import replace
from pathlib import Path

from tasks.data import Examples, Lazy, Population, Split, open_population
from tasks.emnist import emnist_lr


def open_faulty(path: str, split: Split) -> Population:
    clients = open_population(path, split)

    def read(client_id: str) -> Examples:
        misbehave(Path(path).parent / client_id)
        return clients.examples(client_id)

    return Lazy(clients.client_ids, read)


def misbehave(client: Path) -> None:
    faults = client.with_suffix(".faults")
    if not faults.exists():
        return
    action, *later = faults.read_text().split() or ["fine"]
    faults.write_text("\n".join(later))
    client.with_suffix(".reached").touch()
    if action == "raise":
        raise RuntimeError("told to raise")
    while action == "hang" or (action == "wait" and not client.with_suffix(".go").exists()):
        time.sleep(0.05)


TASK = replace(emnist_lr(), open=open_faulty)
