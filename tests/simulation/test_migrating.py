"""MIGRATING.md: its code runs, and gives what it says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from settings.schema import Settings
from simulation.federation import in_process
from tasks.data import open_population
from weights.keras import load_model

ROOT = Path(__file__).parents[2]
LETTERS = "abcdefghij "


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files in the current folder, which imports search."""
    text = (ROOT / "MIGRATING.md").read_text()
    for name, code in re.findall(r"<!-- (\w+\.py) -->\n```python\n(.*?)```", text, re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_fedprox_with_tffs_sign_is_tffs_fedprox(documented: Path, tff_data: Path) -> None:
    """TFF 0.87: build_weighted_fed_prox(strength 0.5), SGD 0.02 and 1.0, ten writers, batches of 20, in file order."""
    data = str(tff_data / "digits_by_writer_train.h5")
    losses = {}
    for mu in (-0.5, 0.0, 0.5):
        federation = in_process(
            Settings(
                task="emnist_lr",
                data=data,
                client_ids=",".join(open_population(data, "train").client_ids[:10]),
                client_optimizer=f"my_optimizers:FedProx:lr=0.02,mu={mu}",
                shuffle=False,
                eval_every=0,
            )
        )
        losses[mu] = [federation.next().train["loss"] for _ in range(3)]
    theirs = [2.5436015129089355, 2.437077045440674, 2.2844698429107666]
    np.testing.assert_allclose(losses[-0.5], theirs, rtol=1e-6)
    # The paper's sign holds clients back: they move less than without the term.
    assert losses[0.5][2] > losses[0.0][2] > losses[-0.5][2]


def test_one_batch_of_everything_is_tffs_fed_sgd(tff_data: Path) -> None:
    """TFF 0.87: build_fed_sgd with server SGD 0.1, ten writers, batches of 20."""
    data = str(tff_data / "digits_by_writer_train.h5")
    federation = in_process(
        Settings(
            task="emnist_lr",
            data=data,
            client_ids=",".join(open_population(data, "train").client_ids[:10]),
            client_optimizer="sgd:lr=1.0",
            server_optimizer="sgd:lr=0.1",
            batch_size=1_000_000,
            eval_every=0,
        )
    )
    losses = [federation.next().train["loss"] for _ in range(3)]
    theirs = [2.3025851249694824, 2.3178553581237793, 3.8964364528656006]
    np.testing.assert_allclose(losses, theirs, rtol=2e-6)


@pytest.fixture
def leaf(documented: Path) -> Settings:
    """Two clients in LEAF's layout, who write the alphabet."""
    for split, count in (("train", 40), ("test", 10)):
        user_data = {}
        for user, start in (("A", 0), ("B", 3)):
            text = (LETTERS[start:] + LETTERS[:start]) * 20
            windows = [(text[at : at + 80], text[at + 80]) for at in range(count)]
            user_data[user] = {"x": [x for x, _ in windows], "y": [y for _, y in windows]}
        content = {"users": [*user_data], "num_samples": [count] * 2, "user_data": user_data}
        (documented / "leaf" / split).mkdir(parents=True)
        (documented / "leaf" / split / "all_data.json").write_text(json.dumps(content))
    return Settings(
        task="leaf_shakespeare:TASK", data="leaf", cohort="all", client_optimizer="sgd:lr=2.0"
    )


def test_a_leaf_task_trains(leaf: Settings) -> None:
    federation = in_process(leaf)
    before = federation.evaluate()
    assert before["num_examples"] == 20
    for _ in range(3):
        federation.next()
    assert federation.evaluate()["loss"] < before["loss"] - 1


@pytest.mark.filterwarnings("ignore")
def test_a_leaf_task_goes_on_from_a_keras_lstm(
    leaf: Settings, documented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And Keras 3 opens what comes out of it."""
    keras = pytest.importorskip("keras")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((80,)),
            layers.Embedding(80, 4),
            layers.LSTM(8, return_sequences=True),
            layers.LSTM(8),
            layers.Dense(80, activation="softmax"),
        ]
    )
    for suffix in (".h5", ".keras"):
        template, tuned = documented / f"lstm{suffix}", documented / f"tuned{suffix}"
        model.save(template)
        start = Settings(**{**vars(leaf), "init": str(template), "save": str(tuned), "rounds": 2})
        federation = in_process(start)
        federation.run()
        arrays = load_model(tuned, logits=True).state_dict()
        assert all(torch.equal(arrays[k], v) for k, v in federation.model.state_dict().items())
        reopened = keras.models.load_model(tuned)
        ids = np.arange(160).reshape(2, 80) % 80
        with torch.no_grad():
            ours = torch.softmax(federation.model.eval()(torch.from_numpy(ids)), -1).numpy()
            theirs = keras.ops.convert_to_numpy(reopened(ids))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
