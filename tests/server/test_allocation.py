"""`adaptive:budget=BYTES`: steps that keep to a budget."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from server.allocation import Adaptive, Allocation, make_allocation
from settings.errors import InputError
from settings.spec import parse_spec
from tests.conftest import Federate
from weights.named import NamedArrays

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


def zeros(**sizes: int) -> NamedArrays:
    return {name: np.zeros(size, np.float32) for name, size in sizes.items()}


def step_of(adaptive: Allocation) -> float:
    [spec] = set(adaptive.specs(zeros(w=1000)).values())
    return float(parse_spec(spec).options["step"])


def test_the_first_round_shares_the_budget_out_equally() -> None:
    # 4,000 parameters share what 150 others, as float32, leave of 1,000 bytes.
    like = zeros(large=3000, other=1000, small=50, just_small=100)
    spec = "step:bits=0.8,rounding=nearest,threshold=100"
    assert Adaptive(1000, threshold=100).specs(like) == dict.fromkeys(like, spec)
    for budget, sizes in ((10**6, like), (1000, zeros(small=50))):
        specs = Adaptive(budget, threshold=100).specs(sizes)
        assert {parse_spec(spec).options["bits"] for spec in specs.values()} == {"8.0"}
    with pytest.raises(InputError, match="the small ones, which are not encoded, take 600 bytes"):
        Adaptive(600, threshold=100).specs(like)


def test_the_step_follows_the_bytes() -> None:
    adaptive = Adaptive(1000, threshold=100)
    adaptive.round_done()  # nobody replied
    assert adaptive.state() == {"step": 0.0}
    update = zeros(large=3000, other=1000, small=50, nothing=2000)
    update["large"][:7] = -0.5, 1.0, -1.5, 0.5, 2.0, 2.5, -0.5
    update["other"][5] = -2.0
    update["small"][:] = 1e-9
    for payload in (1500, 2500):
        adaptive.observe(update, payload)
    adaptive.round_done()
    # The steps that equal bits led to, in the geometric mean over parameters; and twice the budget.
    step = math.exp((3 * math.log(0.5) + math.log(2.0)) / 4) * 2**0.6
    assert step_of(adaptive) == pytest.approx(step)
    for payload, change in ((500, 0.5**0.6), (1, 0.25), (10**9, 4.0), (1000, 1.0)):
        adaptive.observe(update, payload)
        adaptive.round_done()
        step *= change
        assert step_of(adaptive) == pytest.approx(step)
    adaptive.round_done()
    resumed = Adaptive(1000, threshold=100)
    resumed.load_state(adaptive.state())
    assert step_of(resumed) == step_of(adaptive) == pytest.approx(step)


def test_other_codecs_are_the_same_for_all_tensors_and_rounds() -> None:
    like = zeros(w=30_000, b=10)
    assert make_allocation("identity").specs(like) == {}
    uniform = make_allocation("uniform:bits=8")
    for _ in range(2):
        assert uniform.specs(like) == dict.fromkeys(like, "uniform:bits=8")
        uniform.observe(like, 10)
        uniform.round_done()
        assert uniform.state() == {}


def test_mistakes() -> None:
    with pytest.raises(InputError, match=r"unknown codec 'adaptve': .*adaptive"):
        make_allocation("adaptve:budget=1000")
    with pytest.raises(InputError, match="budget must be at least 1 byte, but is 0"):
        make_allocation("adaptive:budget=0")
    assert make_allocation("adaptive:budget=1").state() == {"step": 0.0}
