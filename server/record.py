"""What a run leaves behind: TensorBoard logs, checkpoints and a JSON file."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any

from server.board import Board
from server.meter import Traffic
from server.strategy import Tally
from settings.schema import Settings
from weights.files import replacing

Metrics = dict[str, float]
METRICS = "metrics.json"
"""The JSON file in every logdir; `--json` gets the same."""


@dataclass(frozen=True)
class RoundRecord:
    """One round, as the JSON file has it.

    Attributes:
        round: 1, 2, ...
        train: Finalized training metrics; empty if no client trained.
        eval: Finalized evaluation metrics; empty where the round has none.
        comm: Bits of training, of this round and cumulative, as array payload and as whole messages;
            and what became of the replies.
        aggregator: Norms that zeroing and clipping applied, and how many updates they touched.
        seconds: Wall time of the round, evaluation included.
        time: Seconds of it by what they went into: `discovering` (new nodes), `sending`, `waiting` (for
            replies), `computing` (checking, decoding and adding them up), `evaluating`.
        unsaved: Why the round's checkpoint could not be written; empty: it was.
    """

    round: int
    train: Metrics
    eval: Metrics
    comm: dict[str, Any]
    aggregator: Metrics
    seconds: float
    time: Metrics = field(default_factory=dict)
    unsaved: str = ""

    @property
    def exact(self) -> str:
        """The record in a line for `json.loads`."""
        return json.dumps(self._content)

    @cached_property
    def text(self) -> str:
        """The same as JSON for others, which has no NaN; made once, for a file that holds all rounds."""
        return json.dumps(without_nan(self._content), allow_nan=False)

    @property
    def _content(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}


def comm_record(tally: Tally, traffic: Traffic, history: Sequence[RoundRecord]) -> dict[str, Any]:
    """A round's traffic: bits to and from the clients, cumulative over the run as the tutorial plots it."""
    last = history[-1].comm if history else {}
    bits = {f"{name}_bits": 8 * count for name, count in vars(traffic).items()}
    total = {f"cumulative_{name}": last.get(f"cumulative_{name}", 0) + bits[name] for name in bits}
    counts = {
        "asked": tally.asked,
        "answered": tally.answered,
        "empty": tally.empty,
        "non_finite": tally.non_finite,
        "update_non_finite": tally.update_non_finite,
        "metrics_non_finite": tally.metrics_non_finite,
        "late": len(tally.late),
        "skipped": tally.skipped,
        "failures": tally.failures,
        "largest_share": tally.largest_share,
    }
    return {**bits, **total, **counts, "failed": tally.failed}


class Recorder:
    """Writes TensorBoard scalars and the JSON file while a run goes on.

    Args:
        settings: The run's settings, as resolved.
        logdir: TensorBoard folder.
        history: Rounds before a resumed run's first.
        before: Evaluation of the initial model.

    Attributes:
        before: The same.
    """

    def __init__(
        self, settings: Settings, logdir: Path, history: list[RoundRecord], before: Metrics
    ) -> None:
        self._settings = settings
        self._config = settings.to_config()
        self._logdir = logdir
        self._history = history
        self.before = before
        # Rounds after the checkpoint may have been logged already: a resumed run writes them anew.
        self._board = Board(logdir, history[-1].round + 1 if history else 0)
        table = "\n".join(f"| {key} | {value} |" for key, value in self._config.items())
        self._board.text("settings", f"| setting | value |\n|---|---|\n{table}", len(history))
        if not history:
            self._board.scalars(_tagged({"eval": before}), 0)

    def add(self, record: RoundRecord, sample: str = "") -> None:
        """Log a finished round, with what the model writes after it."""
        self._history.append(record)
        groups = {
            "train": record.train,
            "eval": record.eval,
            "comm": {key: value for key, value in record.comm.items() if key != "failed"},
            "aggregator": record.aggregator,
            "time": {"seconds": record.seconds, **record.time},
        }
        self._board.scalars(_tagged(groups), record.round)
        if sample:
            # Monospaced.
            self._board.text("sample", indent(sample, "    "), record.round)

    def flush(self, *, durable: bool = False) -> None:
        """Write what has been logged for TensorBoard; arguments and errors are those of `Growing.flush`."""
        self._board.flush(durable=durable)

    def write_json(self) -> None:
        """Write the JSON file; InputError if the disk does not take it."""
        text = self._json()
        for path in (self._logdir / METRICS, Path(self._settings.json)):
            if path.name:
                # A resumed run writes it anew: nothing is lost with the machine.
                with replacing(path, durable=False) as file:
                    file.write_text(text)

    @property
    def last(self) -> RoundRecord:
        """The round that was logged last."""
        return self._history[-1]

    def unsaved(self, record: RoundRecord) -> None:
        """Count that the last round, as this record says, could not be written or has no checkpoint."""
        self._history[-1] = record
        self._board.scalars({"checkpoint/unsaved": 1}, record.round)

    def close(self) -> None:
        """Log the hyperparameters with the final metrics, and write everything; InputError as the others."""
        last = self._history[-1] if self._history else None
        final = {f"final/{k}": v for k, v in (last.eval or last.train).items()} if last else {}
        self._board.hyperparameters(self._config, final)
        self.flush()
        self.write_json()

    def _json(self) -> str:
        """Settings and initial evaluation in the first line, then a line for each round."""
        content = {"settings": self._config, "before": without_nan(self.before)}
        rounds = ",\n".join(record.text for record in self._history)
        return f'{json.dumps(content)[:-1]}, "rounds": [\n{rounds}\n]}}\n'


def _tagged(groups: Mapping[str, Metrics]) -> Metrics:
    """TensorBoard's tags, `group/name`."""
    return {f"{group}/{name}": groups[group][name] for group in groups for name in groups[group]}


def without_nan(value: Any) -> Any:
    """A value for JSON. JSON has no NaN and no infinity: a metric of a model that diverged becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
