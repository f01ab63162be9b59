"""The same run again, stopped and resumed, and killed and started again."""

import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import announce, evaluate_model, lookahead, train
from client.app import app as client_app
from server.rounds import Federation
from settings.errors import InputError
from settings.schema import Settings
from simulation.grid import InProcessGrid
from tests.conftest import Federate
from tests.server.test_rounds import SMALL
from weights.checkpoint import read_checkpoint
from weights.named import fingerprint


def test_a_run_is_bit_for_bit_repeatable(writers: str, federate: Federate) -> None:
    """With shuffling, sampled cohorts, and a model drawn at random."""
    values = {**SMALL, "data": writers, "task": "emnist_cnn", "cohort": "2", "max_batches": 2}
    first_json, first = federate("first", **values, seed=5)
    again_json, again = federate("again", **values, seed=5)
    _, other = federate("other", **values, seed=6)
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)
    assert without_seconds(first_json) == without_seconds(again_json)


def without_seconds(content: dict[str, Any]) -> list[dict[str, Any]]:
    rounds = [dict(record) for record in content["rounds"]]
    assert all(record.pop("seconds") > 0 for record in rounds)
    assert all(record.pop("time") for record in rounds)
    return [content["before"], *rounds]


@pytest.mark.parametrize(
    "server_optimizer",
    [
        "sgd:lr=1.0",
        "sgd:lr=0.5,momentum=0.9",
        "adam:lr=0.01",
        "yogi:lr=0.01",
        "torch.AdamW:lr=0.01,amsgrad=true",
    ],
)
def test_resuming_changes_nothing(server_optimizer: str, writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "server_optimizer": server_optimizer}
    straight_json, straight = federate("straight", **{**values, "rounds": 4})
    stopped_json, stopped = federate("stopped", **values)
    resumed_json, resumed = federate("stopped", **{**values, "rounds": 4}, resume=True)
    assert fingerprint(resumed) == fingerprint(straight) != fingerprint(stopped)
    assert without_seconds(resumed_json) == without_seconds(straight_json)
    assert without_seconds(stopped_json) == without_seconds(straight_json)[:3]
    assert resumed_json["rounds"][:2] == stopped_json["rounds"]


def test_where_a_resumed_run_goes_on_is_said(
    writers: str, federate: Federate, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {**SMALL, "data": writers, "eval_every": 0}
    for rounds, said in ((1, ""), (3, "1 round: goes on with round 2"), (2, "3 rounds: no more")):
        federate(**{**values, "rounds": rounds}, resume=rounds != 1)
        out = capsys.readouterr().out
        assert f"run holds {said}" in out if said else "holds" not in out
    assert "no more --rounds to do\n" in out


def test_resuming_with_other_settings_is_refused(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "rounds": 1}
    federate(**values)
    with pytest.raises(InputError, match="already holds a run: give --resume"):
        federate(**values)
    for change, flag in (
        ({"seed": 1}, "--seed 0, not 1"),
        ({"batch_size": 4}, "--batch-size 8, not 4"),
        ({"client_optimizer": "sgd:lr=0.2"}, "--client-optimizer sgd:lr=0.01, not sgd:lr=0.2"),
    ):
        with pytest.raises(InputError, match=re.escape(flag)):
            federate(**{**values, **change}, resume=True)
    with pytest.raises(InputError, match="nothing to resume"):
        federate("elsewhere", **values, resume=True)
    # A setting that is left to the task and one that says the same are the same.
    federate(**{**values, "rounds": 2}, resume=True)


def test_a_run_that_flower_starts_again_goes_on_by_itself(
    writers: str, federate: Federate, tmp_path: Path
) -> None:
    """Killed during round 3, and started again with Flower's id of the run but without --resume."""
    values = {**SMALL, "data": writers, "rounds": 4, "server_optimizer": "sgd:lr=0.5,momentum=0.9"}
    _, straight = federate("straight", **values)
    folder = tmp_path / "killed"
    settings = Settings(**values, logdir=str(folder), save=str(folder / "model.safetensors"))

    def start(run_id: int, app: ClientApp = client_app) -> None:
        config, announce = settings.to_config(), lookahead.announce
        Federation(settings, InProcessGrid(app, config, run_id=run_id, announce=announce)).run()

    with pytest.raises(KeyboardInterrupt):
        start(7, dying(server_round=3))
    assert sorted(path.name for path in folder.glob("checkpoints/round-*")) == [
        f"round-00000{number}.safetensors" for number in (1, 2)
    ]
    with pytest.raises(InputError, match="already holds a run: give --resume"):
        start(8)
    start(7)
    assert fingerprint(read_checkpoint(folder / "model.safetensors")[0]) == fingerprint(straight)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    resume: bool, writers: str, federate: Federate, tmp_path: Path
) -> None:
    values = {**SMALL, "data": writers}
    _, straight = federate("straight", **values)
    folder = tmp_path / "killed"
    settings = Settings(**values, logdir=str(folder))
    with pytest.raises(KeyboardInterrupt):
        Federation(settings, InProcessGrid(dying(server_round=1), settings.to_config())).run()
    # What a kill in the first write of a state or a checkpoint leaves.
    state = folder / "checkpoints/states/2/residual%2Fa/round-000001.safetensors"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"of a round that never was")
    (folder / "checkpoints/.round-000001.safetensors.0123abcd").touch()
    content, arrays = federate("killed", **values, resume=resume)
    assert len(content["rounds"]) == 2
    assert fingerprint(arrays) == fingerprint(straight)
    assert sorted(path.name for path in (folder / "checkpoints").rglob("*")) == [
        "round-000001.safetensors",
        "round-000002.safetensors",
        "rounds.jsonl",
    ]


def dying(server_round: int) -> ClientApp:
    """Our clients, until one of them takes the whole process with it."""
    app = ClientApp()
    app.query()(announce)
    app.evaluate()(evaluate_model)

    @app.train()
    def train_or_die(message: Message, context: Context) -> Message:
        if message.content.config_records["config"]["server-round"] == server_round:
            raise KeyboardInterrupt
        return train(message, context)

    return app


def test_nothing_is_left_to_do(writers: str, federate: Federate) -> None:
    before_json, before = federate(**SMALL, data=writers)
    after_json, after = federate(**SMALL, data=writers, resume=True)
    assert fingerprint(before) == fingerprint(after)
    assert before_json["rounds"] == after_json["rounds"]
