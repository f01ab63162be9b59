"""A round's lines in Flower's log."""

import logging

import pytest

from server.record import RoundRecord
from server.report import report
from server.strategy import Tally
from tests.conftest import Federate

TIME = {"sending": 0.25, "waiting": 12.5, "computing": 0.125}


def lines(tally: Tally) -> list[str]:
    bits = {"broadcasted_message_bits": 8e6, "aggregated_message_bits": 4e6}
    return report(RoundRecord(3, {}, {}, bits, {}, 13.0, TIME), tally)


def test_who_was_asked_answered_failed_and_is_late() -> None:
    tally = Tally(["a", "b", "c", "d"], answered=2, empty=1, late=["d"])
    tally.fail("b", "node 7: no memory left")
    assert lines(tally) == [
        "round 3: 4 asked (a, b, c, d), 2 answered, 1 failed, 1 late, 1 without data",
        "round 3: failed: b (node 7: no memory left)",
        "round 3: late: d",
        "round 3: 0.25 s sending, 12.50 s waiting, 0.12 s computing; "
        "1.000 MB to the clients, 0.500 MB back",
    ]


def test_a_round_that_changed_nothing_says_why() -> None:
    assert "round 3: the model stays as it was: too few replies" in lines(Tally(["a"], skipped=1))
    said = lines(Tally(["a"], answered=1, update_non_finite=1))
    assert "round 3: the model stays as it was: the aggregated update is not finite" in said


def test_lines_stay_short_with_thousands_of_clients() -> None:
    names = [f"client_{number:05}" for number in range(5000)]
    tally = Tally(names, late=names[:2000])
    for name in names[2000:]:
        tally.fail(name, "node 7: the reply holds 0 records of a kind, not one")
    said = lines(tally)
    assert all(len(line) < 500 for line in said)
    assert said[0] == (
        "round 3: 5000 asked (client_00000, client_00001, client_00002, client_00003, client_00004 "
        "and 4995 more), 0 answered, 3000 failed, 2000 late"
    )
    assert said[1].endswith("and 2995 more")


def test_it_goes_to_flowers_log_and_the_record(
    writers: str,
    federate: Federate,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("flwr")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, "flwr"):
        content, _ = federate(task="emnist_lr", data=writers, cohort="3", rounds=1)
    said = [record.getMessage() for record in caplog.records if "round 1" in record.getMessage()]
    assert len(said) == 2
    assert "3 asked (" in said[0]
    [record] = content["rounds"]
    assert set(record["time"]) == {
        *("discovering", "sending", "waiting", "computing", "evaluating"),
    }
    assert sum(record["time"].values()) == pytest.approx(record["seconds"], rel=0.05)
