"""What a run leaves behind: TensorBoard logs, checkpoints and a JSON file."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from server.meter import Traffic
from server.strategy import Tally
from settings.schema import Settings
from weights.checkpoint import replacing

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
    """

    round: int
    train: Metrics
    eval: Metrics
    comm: dict[str, Any]
    aggregator: Metrics
    seconds: float


def comm_record(tally: Tally, traffic: Traffic, before: list[RoundRecord]) -> dict[str, Any]:
    """A round's traffic: bits to and from the clients, cumulative over the run as the tutorial plots it."""
    last = before[-1].comm if before else {}
    bits = {f"{name}_bits": 8 * count for name, count in asdict(traffic).items()}
    total = {f"cumulative_{name}": last.get(f"cumulative_{name}", 0) + bits[name] for name in bits}
    counts = {
        "asked": tally.asked,
        "answered": tally.answered,
        "empty": tally.empty,
        "non_finite": tally.non_finite,
        "update_non_finite": tally.update_non_finite,
        "late": tally.late,
        "skipped": tally.skipped,
    }
    return {**bits, **total, **counts, "failed": tally.failed}


class Recorder:
    """Writes TensorBoard scalars and the JSON file while a run goes on.

    Args:
        settings: The run's settings, as resolved.
        logdir: TensorBoard folder.
        history: Rounds before a resumed run's first.
        before: Evaluation of the initial model.
    """

    def __init__(
        self, settings: Settings, logdir: Path, history: list[RoundRecord], before: Metrics
    ) -> None:
        self.settings = settings
        self._logdir = logdir
        self.history = history
        self.before = before
        # Rounds after the checkpoint may have been logged already: a resumed run writes them anew.
        purge = history[-1].round + 1 if history else 0
        self.board = SummaryWriter(str(logdir), purge_step=purge)
        table = "\n".join(f"| {key} | {value} |" for key, value in settings.to_config().items())
        self._text("settings", f"| setting | value |\n|---|---|\n{table}", len(history))
        if not history:
            self.scalars("eval", before, 0)

    def add(self, record: RoundRecord, sample: str = "") -> None:
        """Log a finished round, with what the model writes after it, and rewrite the JSON files."""
        self.history.append(record)
        self.scalars("train", record.train, record.round)
        self.scalars("eval", record.eval, record.round)
        numbers = {key: value for key, value in record.comm.items() if key != "failed"}
        numbers |= {"failed": len(record.comm["failed"])}
        self.scalars("comm", numbers, record.round)
        self.scalars("aggregator", record.aggregator, record.round)
        self.scalars("time", {"seconds": record.seconds}, record.round)
        if sample:
            # Monospaced.
            self._text("sample", indent(sample, "    "), record.round)
        for path in (self._logdir / METRICS, Path(self.settings.json)):
            if path.name:
                with replacing(path) as file:
                    file.write_text(self._json())
        # On disk before the round's checkpoint is: a round that is not done again must not lack its logs.
        self.board.flush()

    def scalars(self, group: str, values: Metrics, server_round: int) -> None:
        """Log `group/name` for each value."""
        for name, value in values.items():
            self.board.add_scalar(f"{group}/{name}", value, server_round)

    def close(self) -> None:
        """Log the hyperparameters with the final metrics, and flush."""
        last = self.history[-1] if self.history else None
        final = {f"final/{k}": v for k, v in (last.eval or last.train).items()} if last else {}
        self.board.add_hparams(self.settings.to_config(), final, run_name=".")
        self.board.close()

    def _text(self, tag: str, text: str, server_round: int) -> None:
        self.board.add_text(tag, text, server_round)

    def _json(self) -> str:
        rounds = [asdict(record) for record in self.history]
        settings = self.settings.to_config()
        content = {"settings": settings, "before": self.before, "rounds": rounds}
        return json.dumps(_without_nan(content), indent=1, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN and no infinity: a metric of a model that diverged becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
