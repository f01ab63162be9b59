"""Node states on disk: what clients remember between rounds outlives the process, as in a SuperNode."""

from pathlib import Path
from urllib.parse import quote, unquote

from flwr.app import ArrayRecord, RecordDict

from weights.checkpoint import (
    read_checkpoint,
    round_of,
    round_path,
    round_paths,
    write_checkpoint,
)
from weights.wire import claimed, pack, records, unpack


class NodeStates:
    """Writes the array records of nodes' states, each when it has changed, as one file a round.

    `FOLDER/NODE/RECORD/round-NNNNNN.safetensors`: the state after a round is, for every record, the
    newest file up to that round.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[tuple[int, str], list[bytes]] = {}

    def save(self, server_round: int, oldest: int, states: dict[int, RecordDict]) -> None:
        """Write what has changed since the last call; drop what no round from `oldest` on needs."""
        for node_id, state in states.items():
            for name, record in records(state, ArrayRecord).items():
                data = [array.data for array in record.values()]
                before = self._written.get((node_id, name))
                # The same bytes objects: a state that no message touched. Comparing them costs nothing.
                if before and all(a is b for a, b in zip(data, before, strict=True)):
                    continue
                place = self._folder / str(node_id) / quote(name, safe="")
                arrays = unpack(record, like=claimed(record))
                write_checkpoint(round_path(place, server_round), arrays, {})
                self._written[node_id, name] = data
                _prune(place, oldest)

    def load(self, server_round: int) -> dict[int, RecordDict]:
        """The states after a round; InputError if a file is damaged.

        Later versions are deleted: they are of rounds that are going to be done again.
        """
        states: dict[int, RecordDict] = {}
        later: list[Path] = []
        for place in sorted(self._folder.glob("*/*")):
            versions = [file for file in round_paths(place) if round_of(file) <= server_round]
            later += round_paths(place)[len(versions) :]
            if versions:
                arrays, _ = read_checkpoint(versions[-1])
                node_id, name = int(place.parent.name), unquote(place.name)
                record = pack(arrays)
                states.setdefault(node_id, RecordDict())[name] = record
                self._written[node_id, name] = [array.data for array in record.values()]
        for file in later:
            file.unlink()
        return states


def _prune(place: Path, oldest: int) -> None:
    """Drop versions that no round from `oldest` on needs: all before the newest up to that round."""
    for file in [file for file in round_paths(place) if round_of(file) <= oldest][:-1]:
        file.unlink()
