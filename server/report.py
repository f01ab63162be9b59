"""A finished round in a few lines of the log: who was asked, who answered, who did not and why."""

from server.record import RoundRecord
from server.strategy import Tally
from settings.errors import few


def report(record: RoundRecord, tally: Tally) -> list[str]:
    """A round's lines; however many clients it had, each is short.

    Args:
        record: The round, evaluated.
        tally: What became of its messages.
    """
    comm, time = record.comm, record.time
    said = [
        f"{tally.asked} asked ({few(tally.clients)})",
        f"{tally.answered} answered",
        f"{tally.failures} failed",
        f"{len(tally.late)} late",
    ]
    counts = {
        "without data": tally.empty,
        "updates not finite": tally.non_finite,
        "metrics not finite": tally.metrics_non_finite,
    }
    said += [f"{count} {what}" for what, count in counts.items() if count]
    lines = [", ".join(said)]
    if tally.failed:
        reasons = [f"{client} ({reason})" for client, reason in tally.failed.items()]
        lines.append(f"failed: {few(reasons, of=tally.failures)}")
    if tally.late:
        lines.append(f"late: {few(tally.late)}")
    if tally.skipped or tally.update_non_finite:
        why = "too few replies" if tally.skipped else "the aggregated update is not finite"
        lines.append(f"the model stays as it was: {why}")
    spent = ", ".join(f"{seconds:.2f} s {what}" for what, seconds in time.items())
    down, up = (comm[f"{way}_message_bits"] / 8e6 for way in ("broadcasted", "aggregated"))
    lines.append(f"{spent}; {down:.3f} MB to the clients, {up:.3f} MB back")
    return [f"round {record.round}: {line}" for line in lines]
