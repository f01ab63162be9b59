"""Sampling: which clients take part in a round."""

from collections import Counter
from typing import Any

import pytest

from client.app import app as client_app
from server.cohort import Cohort
from server.directory import Directory
from settings.errors import InputError
from settings.schema import Settings
from simulation.grid import InProcessGrid

TWENTY = Directory(InProcessGrid(client_app, {}), {f"c{index:02}": 2 for index in range(20)})


def cohort(**values: Any) -> Cohort:
    return Cohort(TWENTY, Settings(**values))


def test_samples_without_replacement_and_sorted() -> None:
    drawn = [cohort(cohort="5", seed=3).train(server_round) for server_round in range(1, 200)]
    assert all(len(set(ids)) == 5 and ids == sorted(ids) for ids in drawn)
    counts = Counter(client_id for ids in drawn for client_id in ids)
    assert set(counts) == set(TWENTY.node_of)
    # 199 rounds of 5 of 20: 50 each, give or take 6.
    assert all(20 < count < 80 for count in counts.values())


def test_a_round_draws_the_same_whenever_it_is_asked() -> None:
    one, other = cohort(cohort="5", seed=3), cohort(cohort="5", seed=3)
    assert [one.train(n) for n in (1, 2, 3)] == [other.train(n) for n in (3, 2, 1)][::-1]
    assert [one.train(n) for n in (1, 2, 3)] != [
        cohort(cohort="5", seed=4).train(n) for n in (1, 2, 3)
    ]
    assert one.train(1) != one.train(2)


def test_everybody() -> None:
    assert cohort(cohort="all").train(1) == list(TWENTY.node_of)
    assert cohort(cohort="1000").train(1) == list(TWENTY.node_of)
    assert len(cohort(cohort="1").train(1)) == 1


def test_more_are_asked_than_are_waited_for() -> None:
    over = cohort(cohort="5", over_select=1.3)
    assert (len(over.train(1)), over.enough, len(over.evaluate())) == (7, 5, 5)
    everybody = cohort(cohort="15", over_select=2.0)
    assert (len(everybody.train(1)), everybody.enough) == (20, 15)


def test_named_clients_train_in_every_round() -> None:
    named = cohort(client_ids="c03, c01", cohort="all")
    assert named.train(1) == named.train(2) == ["c03", "c01"]
    assert named.enough == 2
    assert named.evaluate() == ["c03", "c01"]
    assert len(cohort(client_ids="c03", eval_cohort="4").evaluate()) == 4


def test_the_evaluation_cohort_is_drawn_once() -> None:
    one = cohort(cohort="5", eval_cohort="7")
    assert len(one.evaluate()) == 7
    assert one.evaluate() == one.evaluate()
    # No round's: a curve on the first round's clients would flatter.
    assert cohort(cohort="7").evaluate() not in [cohort(cohort="7").train(n) for n in range(1, 9)]
    assert len(one.train(1)) == 5
    assert len(cohort(cohort="5").evaluate()) == 5
    assert cohort(cohort="5", eval_cohort="all").evaluate() == list(TWENTY.node_of)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"client_ids": "c01,c99"}, "unknown client id 'c99'"),
        ({"client_ids": "c01,c02,c01"}, "c01.*twice"),
        ({"cohort": "4", "min_replies": 5}, "--min-replies 5 is over the 4 clients"),
        ({"client_ids": "c01,c02", "min_replies": 3}, "--min-replies 3 is over the 2 clients"),
    ],
)
def test_mistakes(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cohort(**values)
