"""A training step of the text tutorial's model: our GRU beside torch's, Keras's and TFF's.

    python benchmarks/gru.py --batch 8 64 --json gru.json
    TFF_PYTHON=oracle/bin/python python benchmarks/gru.py      # with Keras 2.14 and a step as TFF runs it

Embedding (86 symbols, 256), GRU (1024), dense (86), cross-entropy over 100 characters, backward pass, SGD step;
and the GRU alone, forward and backward. Every turn runs each contender once, one after the other, and a ratio
compares two of the same turn. `nn.GRU` has the convention of `reset_after=True` only.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import settings.threads  # noqa: F401  as our command does, before torch

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.precision import outputs_of
from weights.keras import KerasModel
from weights.layers import Dense, Embedding, linear
from weights.recurrent import GRU

SYMBOLS, FEATURES, UNITS, STEPS = 86, 256, 1024, 100
BASELINE = "nn.GRU float32"
Step = Callable[[], float]
"""Runs once and gives the seconds that it took."""


class TorchModel(nn.Module):
    """The model as one writes it in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, FEATURES)
        self.gru = nn.GRU(FEATURES, UNITS, batch_first=True)
        self.dense = nn.Linear(UNITS, SYMBOLS)

    def forward(self, text: Tensor) -> Tensor:
        outputs: Tensor = self.dense(self.gru(self.embedding(text))[0])
        return outputs


def our_model(reset_after: bool) -> nn.Module:
    model = KerasModel(
        {
            "embedding": Embedding(SYMBOLS, FEATURES),
            "gru": GRU(FEATURES, UNITS, reset_after=reset_after),
            "dense": Dense(UNITS, SYMBOLS, True, linear),
        },
        "{}",
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -(UNITS**-0.5), UNITS**-0.5)
    return model


def training_step(model: nn.Module, precision: str, text: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    inputs, targets = text[:, :-1], text[:, 1:]

    def step() -> float:
        started = time.perf_counter()
        outputs = outputs_of(model, inputs, precision)
        loss = F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.perf_counter() - started

    return step


def layer_alone(layer: nn.Module, precision: str, batch: int) -> Step:
    features = torch.randn(batch, STEPS, FEATURES, requires_grad=True)
    grad = torch.randn(batch, STEPS, UNITS)

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            outputs = layer(features)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        torch.autograd.grad(outputs, [features, *layer.parameters()], grad.to(outputs.dtype))
        return time.perf_counter() - started

    return step


def contenders(batch: int) -> tuple[dict[str, Step], dict[str, Step]]:
    """Whole steps and the layer alone, by name."""
    text = torch.randint(SYMBOLS, (batch, STEPS + 1))
    whole, alone = {}, {}
    for precision in ("float32", "bf16"):
        whole[f"nn.GRU {precision}"] = training_step(TorchModel(), precision, text)
        theirs = nn.GRU(FEATURES, UNITS, batch_first=True)
        alone[f"nn.GRU {precision}"] = layer_alone(theirs, precision, batch)
        for reset_after in (False, True):
            name = f"ours {precision} reset_after={reset_after}"
            whole[name] = training_step(our_model(reset_after), precision, text)
            layer = GRU(FEATURES, UNITS, reset_after=reset_after)
            alone[name] = layer_alone(layer, precision, batch)
    return whole, alone


@contextmanager
def keras(batch: int) -> Iterator[dict[str, Step]]:
    """Steps that a process with TensorFlow runs when it is asked; none without TFF_PYTHON."""
    if "TFF_PYTHON" not in os.environ:
        yield {}
        return
    script = str(Path(__file__).with_name("gru_keras.py"))
    sizes = map(str, (batch, STEPS, SYMBOLS, FEATURES, UNITS, torch.get_num_threads()))
    with subprocess.Popen(
        [os.environ["TFF_PYTHON"], script, *sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answers = process.stdin, process.stdout

        def stepper(name: str) -> Step:
            def step() -> float:
                ask.write(name + "\n")
                ask.flush()
                return float(answers.readline())

            return step

        yield {name: stepper(name) for name in answers.readline().strip().split(",")}
        ask.close()


def measure(steps: dict[str, Step], turns: int) -> dict[str, list[float]]:
    """Seconds of each contender in each turn; a first turn is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, step in steps.items():
            taken = step()
            if turn:
                seconds[name].append(taken)
    return seconds


def ratio(seconds: list[float], others: list[float] | None) -> str:
    """Median, least and largest ratio within a turn."""
    if others is None:
        return ""
    ratios = sorted(a / b for a, b in zip(seconds, others, strict=True))
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def show(title: str, seconds: dict[str, list[float]]) -> None:
    print(f"\n| {title} | ms | of {BASELINE} | of Keras, same convention |\n|---|---|---|---|")
    for name, taken in seconds.items():
        keras_name = f"Keras reset_after={'reset_after=False' not in name}"
        print(
            f"| {name} | {1e3 * statistics.median(taken):.0f} | {ratio(taken, seconds[BASELINE])} "
            f"| {ratio(taken, seconds.get(keras_name))} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write all seconds here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    everything = {}
    print(f"{options.threads} threads, {options.turns} turns, medians (least to largest)")
    for batch in options.batch:
        whole, alone = contenders(batch)
        with keras(batch) as theirs:
            everything[f"training step, {batch} x {STEPS}"] = measure(whole | theirs, options.turns)
        everything[f"GRU alone, {batch} x {STEPS}"] = measure(alone, options.turns)
    for title, seconds in everything.items():
        show(title, seconds)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
