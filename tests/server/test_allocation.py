"""`adaptive:budget=BYTES`: steps that keep to a budget."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from server.allocation import Adaptive
from settings.errors import InputError
from weights.named import NamedArrays

Federate = Callable[..., tuple[dict[str, Any], NamedArrays]]
RUN: dict[str, Any] = {"task": "emnist_lr", "rounds": 3, "cohort": "4", "eval_every": 0}


def test_adaptive_meets_its_budget(writers: str, federate: Federate) -> None:
    # 10 + 7840 parameters: at 1,000 bytes about one bit each.
    ours, _ = federate(
        **RUN | {"rounds": 8, "cohort": "all"},
        data=writers,
        codec="adaptive:budget=1000,threshold=100",
    )
    payloads = [r["comm"]["aggregated_bits"] / 8 / r["comm"]["answered"] for r in ours["rounds"]]
    assert payloads[-1] == pytest.approx(1000, rel=0.15), payloads


def test_a_budget_that_cannot_be_spent_takes_the_step_no_lower_than_float32() -> None:
    """2^-23 of the largest value of the client that has the smallest one."""
    allocation = Adaptive(budget=10**6, threshold=0)
    update = {"w": np.array([0.5, -2.0, 0.0, 1.0], np.float32)}
    for _ in range(600):
        allocation.specs(update)
        allocation.observe(update, payload=20)
        allocation.observe({"w": 4 * update["w"]}, payload=20)
        allocation.observe({"w": 0 * update["w"]}, payload=4)
        allocation.round_done()
    assert allocation.state() == {"step": 2.0**-22}


def test_a_client_that_diverges_does_not_set_the_step(
    spoilt: Callable[..., str], federate: Federate
) -> None:
    ours, _ = federate(
        **RUN | {"cohort": "all"},
        data=spoilt("c", "pixels", np.nan),
        codec="adaptive:budget=1000,threshold=100",
    )
    assert [r["comm"]["non_finite"] for r in ours["rounds"]] == [1, 1, 1]
    assert all(np.isfinite(r["train"]["loss"]) for r in ours["rounds"])


def test_a_budget_below_the_small_tensors_is_refused(writers: str, federate: Federate) -> None:
    with pytest.raises(InputError, match="leaves nothing"):
        federate(**RUN, data=writers, codec="adaptive:budget=20")
    with pytest.raises(InputError, match="budget"):
        federate("other", **RUN, data=writers, codec="adaptive:bugdet=20")
