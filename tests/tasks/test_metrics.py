"""Metrics as sums over batches and clients."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.update import local_update
from settings.errors import InputError
from tasks.catalogue import load_task
from tasks.evaluation import evaluate
from tasks.metrics import (
    ACCURACY,
    ALWAYS,
    Metric,
    MetricSums,
    Sums,
    add_sums,
    classification_loss,
    finalize,
    ratio,
)
from tasks.stream import Batch
from weights.named import arrays_of


def logits(*classes: int) -> Tensor:
    """Logits of 3 classes that choose these."""
    return torch.nn.functional.one_hot(torch.tensor(classes), 3).float() * 2


def count(outputs: Tensor, batch: Batch) -> Sums:
    sums = MetricSums({"accuracy": ACCURACY})
    sums.add(outputs, classification_loss(outputs, batch), batch)
    return sums.sums()


@pytest.mark.parametrize("name", ["loss", "num_examples", "num_batches", "num-examples"])
def test_a_metric_cannot_take_the_name_of_what_is_always_there(name: str) -> None:
    with pytest.raises(InputError, match=f"task emnist_lr: '{name}' is there anyway"):
        replace(load_task("emnist_lr"), metrics={name: ACCURACY})


def test_loss_is_mean_cross_entropy() -> None:
    scores = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 2]))
    expected = np.mean(
        [-s[t] + np.log(np.exp(s).sum()) for s, t in zip(scores, [0, 2], strict=True)]
    )
    loss = classification_loss(torch.tensor(scores), batch)
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)


def test_sums_of_batches_weigh_by_targets() -> None:
    sums = MetricSums({"accuracy": ACCURACY})
    for outputs, targets in ((logits(0, 1, 2, 0), [0, 1, 2, 1]), (logits(2), [0])):
        batch = Batch(torch.zeros(len(targets), 1), torch.tensor(targets))
        sums.add(outputs, torch.tensor(float(len(targets))), batch)
    assert sums.sums() == {
        "loss": [4 * 4.0 + 1 * 1.0, 5.0],
        "accuracy": [3.0, 5.0],
        "num_examples": [5.0],
        "num_batches": [2.0],
    }
    assert finalize(sums.sums(), {"accuracy": ACCURACY}) == {
        "loss": 3.4,
        "accuracy": 0.6,
        "num_examples": 5,
        "num_batches": 2,
    }


def test_text_counts_characters_but_weighs_sequences() -> None:
    outputs = logits(0, 1, 2, 0, 1, 1).reshape(2, 3, 3)
    batch = Batch(torch.zeros(2, 3), torch.tensor([[0, 1, 0], [0, 0, 0]]))
    sums = count(outputs, batch)
    assert sums["accuracy"] == [3.0, 6.0]
    assert sums["loss"][1] == 6.0
    assert sums["num_examples"] == [2.0]


def test_what_is_masked_changes_nothing() -> None:
    targets = torch.tensor([[0, 1], [2, 0]])
    mask = torch.tensor([[True, True], [True, False]])
    outputs = logits(0, 1, 1, 2).reshape(2, 2, 3)
    sums = count(outputs, Batch(torch.zeros(2, 2), targets, mask))
    plain = count(logits(0, 1, 1), Batch(torch.zeros(3, 1), torch.tensor([0, 1, 2])))
    assert sums["accuracy"] == [2.0, 3.0] == plain["accuracy"]
    assert sums["loss"] == pytest.approx(plain["loss"])
    outputs[1, 1] = torch.tensor([-50.0, 50.0, 0.0])
    assert count(outputs, Batch(torch.zeros(2, 2), targets, mask)) == sums


def test_masked_targets_give_no_gradient() -> None:
    outputs = logits(0, 1, 2).requires_grad_()
    mask = torch.tensor([True, False, True])
    classification_loss(outputs, Batch(torch.zeros(3, 1), torch.tensor([1, 1, 1]), mask)).backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert outputs.grad.abs().sum(dim=1).bool().tolist() == [True, False, True]


def test_sums_over_clients() -> None:
    totals: Sums = {}
    add_sums(totals, {"loss": [1.0, 2.0], "accuracy": [1.0, 2.0]})
    add_sums(totals, {"loss": [5.0, 1.0], "accuracy": [0.0, 1.0]})
    assert totals == {"loss": [6.0, 3.0], "accuracy": [1.0, 3.0]}
    with pytest.raises(ValueError, match="zip"):
        add_sums(totals, {"loss": [1.0]})


def test_sums_stay_exact_and_need_no_batch() -> None:
    sums = MetricSums({})
    assert sums.sums() == {}
    assert finalize({}, {"accuracy": ACCURACY}) == {}
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1))
    large = MetricSums({"big": Metric(lambda outputs, batch: [torch.tensor(2.0**24)], num_sums=1)})
    for _ in range(3):
        large.add(torch.zeros(1), torch.tensor(1.0), batch)
    large_plus_one = MetricSums({"big": Metric(lambda outputs, batch: [1.0], num_sums=1)})
    large_plus_one.add(torch.zeros(1), torch.tensor(1.0), batch)
    totals = large.sums()
    add_sums(totals, large_plus_one.sums())
    assert totals["big"] == [3 * 2.0**24 + 1]


def test_batches_are_added_up_in_double_precision() -> None:
    """2^24 + 1 is no float32."""
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1))
    sums = MetricSums({"big": Metric(lambda outputs, batch: [outputs[0]], num_sums=1)})
    for value in (2.0**24, 1.0, 1.0):
        sums.add(torch.tensor([value]), torch.tensor(1.0), batch)
    assert sums.sums()["big"] == [2.0**24 + 2]


def test_what_every_client_sends() -> None:
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1))
    sums = MetricSums({})
    sums.add(torch.zeros(1), torch.tensor(1.0), batch)
    assert {name: len(values) for name, values in sums.sums().items()} == ALWAYS


@pytest.mark.parametrize(
    "outputs",
    [
        torch.linspace(-3, 3, 15).reshape(5, 3),
        torch.linspace(-3, 3, 15).reshape(3, 5).T,
        torch.linspace(-3, 3, 30).reshape(2, 5, 3),
        torch.linspace(-3, 3, 30).reshape(2, 3, 5).movedim(1, -1),
        torch.linspace(-3, 3, 30).reshape(5, 3, 2).permute(2, 0, 1),
        torch.linspace(-3, 3, 60).reshape(2, 5, 3, 2).movedim(-1, 1),
    ],
    ids=lambda outputs: f"{tuple(outputs.shape)} by {outputs.stride()}",
)
def test_the_loss_does_not_depend_on_where_outputs_lie(outputs: Tensor) -> None:
    targets = torch.arange(outputs[..., 0].numel()).reshape(outputs.shape[:-1]) % 3
    scores, chosen = outputs.double().numpy(), targets.numpy()[..., None]
    expected = np.log(np.exp(scores).sum(-1)) - np.take_along_axis(scores, chosen, -1)[..., 0]
    losses = classification_loss.losses(outputs, Batch(outputs, targets))
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_a_value_that_cannot_be_had_is_not_a_number(caplog: pytest.LogCaptureFixture) -> None:
    sums = {"loss": [1.0, 2.0], "num_examples": [2.0], "num_batches": [1.0]}
    metrics = {
        "broken": Metric(lambda outputs, batch: (), lambda sums: sums[0] / 0),
        "tensor": Metric(lambda outputs, batch: (), lambda sums: torch.tensor(sums[0])),  # type: ignore[arg-type, return-value]
    }
    values = finalize(sums | {"broken": [3.0, 4.0], "tensor": [0.5, 1.0]}, metrics)
    assert math.isnan(values.pop("broken"))
    assert values == {"loss": 0.5, "tensor": 0.5, "num_examples": 2, "num_batches": 1}
    assert type(values["tensor"]) is float
    assert "metric broken has no value for the sums [3.0, 4.0]: ZeroDivisionError" in caplog.text


def test_a_metric_of_ones_own() -> None:
    """Root of the mean square: two sums and another finalizer."""

    def squares(outputs: Tensor, batch: Batch) -> list[Tensor | float]:
        return [(outputs - batch.targets).square().sum(), float(len(outputs))]

    metric = Metric(squares, lambda sums: math.sqrt(sums[0] / sums[1]))
    sums = MetricSums({"rmse": metric})
    for outputs, targets in (([1.0, 2.0], [0.0, 0.0]), ([3.0], [1.0])):
        batch = Batch(torch.zeros(len(targets), 1), torch.tensor(targets))
        sums.add(torch.tensor(outputs), torch.tensor(0.5), batch)
    assert finalize(sums.sums(), {"rmse": metric})["rmse"] == math.sqrt((1 + 4 + 4) / 3)


def test_nothing_counted_is_not_a_number() -> None:
    assert math.isnan(ratio([0.0, 0.0]))
    assert ratio([1.0, 4.0]) == 0.25


def test_a_metric_that_gives_no_sums_is_named() -> None:
    sums = MetricSums({"mine": Metric(lambda outputs, batch: outputs.mean())})  # type: ignore[arg-type, return-value]
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="metric mine must give its sums"):
        sums.add(torch.zeros(2, 3), torch.tensor(0.0), batch)


def test_a_metric_that_gives_another_number_of_sums_is_named() -> None:
    sums = MetricSums({"mine": Metric(lambda outputs, batch: (1.0, 2.0, 3.0))})
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"metric mine gives 3 sums, not 2: .*num_sums=3"):
        sums.add(torch.zeros(2, 3), torch.tensor(0.0), batch)


def test_a_metric_whose_sums_are_not_added_up_is_named() -> None:
    sums = MetricSums({"mine": Metric(lambda outputs, batch: (outputs[:, 0], 2.0))})
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"metric mine must give scalars, .* shapes \[2\], \[\]"):
        sums.add(torch.zeros(2, 3), torch.tensor(0.0), batch)


@pytest.mark.parametrize(
    ("given", "said"),
    [(torch.zeros(2), r"shape \[2\]"), (torch.zeros(1), r"shape \[1\]"), (0.0, "float")],
)
def test_a_loss_that_is_no_mean_is_named(given: Any, said: str) -> None:
    task = replace(load_task("emnist_lr"), name="mine", loss=lambda outputs, batch: given)
    batch = Batch(torch.zeros(2, 784), torch.zeros(2, dtype=torch.int64))
    said = f"^task mine: loss must be the mean over a batch, a scalar tensor, not {said}$"
    with pytest.raises(InputError, match=said):
        evaluate(task, task.model(), [batch])
    model = task.model()
    with pytest.raises(InputError, match=said):
        local_update(task, model, arrays_of(model), [batch], "sgd:lr=1.0")


def test_a_loss_that_is_detached_is_named() -> None:
    task = replace(load_task("emnist_lr"), name="mine", loss=lambda outputs, batch: torch.zeros(()))
    batch = Batch(torch.zeros(2, 784), torch.zeros(2, dtype=torch.int64))
    model = task.model()
    assert evaluate(task, model, [batch])["loss"] == [0.0, 2.0]
    said = "^task mine: loss has no gradient: torch must compute it from the model's outputs$"
    with pytest.raises(InputError, match=said):
        local_update(task, model, arrays_of(model), [batch], "sgd:lr=1.0")
