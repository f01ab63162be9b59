"""The round loop: determinism, resuming, and what stops a run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import announce, evaluate_model, lookahead, train
from client.app import app as client_app
from server.rounds import Federation, resolve
from settings.errors import InputError
from settings.schema import Settings
from simulation.federation import in_process
from simulation.grid import InProcessGrid
from tasks.catalogue import load_task
from tests.conftest import Federate
from weights.checkpoint import read_checkpoint
from weights.keras import load_model
from weights.named import arrays_of, fingerprint

SMALL: dict[str, Any] = {
    "task": "emnist_lr",
    "cohort": "4",
    "rounds": 2,
    "batch_size": 8,
    "client_optimizer": "sgd:lr=0.01",
}


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


def test_the_seed_decides_shuffling_alone_too(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "cohort": "all", "task": "emnist_lr"}
    shuffled = {fingerprint(federate(f"s{n}", **values, seed=n)[1]) for n in (1, 2)}
    assert len(shuffled) == 2
    ordered = {fingerprint(federate(f"o{n}", **values, seed=n, shuffle=False)[1]) for n in (1, 2)}
    assert len(ordered) == 1


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
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == [
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
        f"round-00000{number}.safetensors" for number in (1, 2)
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


def test_uniform_weights_differ_from_examples(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "cohort": "all"}
    _, examples = federate("examples", **values)
    _, uniform = federate("uniform", **values, weighting="uniform")
    assert fingerprint(examples) != fingerprint(uniform)


def test_federated_and_centralised_evaluation_agree(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "eval_cohort": "all"}
    federated, _ = federate("federated", **values)
    centralised, _ = federate("centralised", **values, evaluation="centralised")
    assert federated["before"]["num_examples"] == sum(range(1, 9))
    assert federated["before"]["loss"] == pytest.approx(2.302585)
    assert federated["before"] == centralised["before"]
    for one, other in zip(federated["rounds"], centralised["rounds"], strict=True):
        assert one["eval"] == pytest.approx(other["eval"])
        assert one["eval"]["loss"] < federated["before"]["loss"]


def test_evaluation_every_few_rounds(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "rounds": 5}
    every_other, _ = federate("other", **values, eval_every=2)
    assert [bool(record["eval"]) for record in every_other["rounds"]] == [
        False,
        True,
        False,
        True,
        True,
    ]
    never, _ = federate("never", **values, eval_every=0)
    assert never["before"] == {}
    assert not any(record["eval"] for record in never["rounds"])
    assert [record["train"] for record in never["rounds"]] == [
        record["train"] for record in every_other["rounds"]
    ]


def test_what_the_json_file_says(writers: str, federate: Federate) -> None:
    content, arrays = federate(**SMALL, data=writers)
    assert content["settings"]["client-optimizer"] == "sgd:lr=0.01"
    assert content["settings"]["cohort"] == "4"
    payload = 8 * (4 * 7850)
    total = 0
    for number, record in enumerate(content["rounds"], start=1):
        comm = record["comm"]
        assert record["round"] == number
        assert (comm["asked"], comm["answered"], comm["failed"]) == (4, 4, {})
        for direction in ("broadcasted", "aggregated"):
            # Four clients; a little more than the floats, for each array's header.
            assert 4 * payload <= comm[f"{direction}_bits"] < 1.02 * 4 * payload
        total += comm["aggregated_bits"]
        assert comm["cumulative_aggregated_bits"] == total
    assert {name: array.shape for name, array in arrays.items()} == {
        "dense.weight": (10, 784),
        "dense.bias": (10,),
    }


def test_a_saved_model_and_a_checkpoint_are_what_a_run_starts_from(
    writers: str, federate: Federate, tmp_path: Path
) -> None:
    values = {**SMALL, "data": writers, "eval_cohort": "all"}
    first, _ = federate("first", **values)
    saved = tmp_path / "first/model.safetensors"
    checkpoint = tmp_path / "first/checkpoints/round-000002.safetensors"
    for name, path in (("a", saved), ("b", checkpoint)):
        second, _ = federate(name, **values, init=str(path))
        assert second["before"] == first["rounds"][-1]["eval"]
    assert read_checkpoint(saved)[1]["architecture"]
    with pytest.raises(InputError, match=r"first/model.safetensors.* architecture"):
        federate("c", **{**values, "task": "emnist_cnn"}, init=str(saved))


def failing(error: Exception) -> ClientApp:
    app = ClientApp()
    app.query()(announce)

    def fail(message: Message, context: Context) -> Message:
        raise error

    app.train()(fail)
    app.evaluate()(fail)
    return app


@pytest.mark.parametrize(("eval_every", "said"), [(0, "round 1"), (1, "evaluation after round 0")])
def test_all_clients_failing_ends_the_run(
    eval_every: int, said: str, writers: str, tmp_path: Path
) -> None:
    settings = Settings(**SMALL, data=writers, eval_every=eval_every, logdir=str(tmp_path / "log"))
    grid = InProcessGrid(failing(RuntimeError("no memory")), settings.to_config())
    why = r"[a-h]: .*no memory \(test_rounds.py, line [0-9]+\)$"
    with pytest.raises(InputError, match=rf"^{said}: all 4 clients failed; {why}"):
        Federation(settings, grid).run()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"client_optimizer": "sdg:lr=1"}, "unknown client optimizer 'sdg'"),
        ({"server_optimizer": "sgd"}, "server optimizer sgd needs lr"),
        ({"client_ids": "z"}, "unknown client id 'z'"),
        ({"task": "no_such"}, "unknown task 'no_such'"),
        ({"data": "/no/such.h5"}, "no such file: /no/such.h5"),
        ({"init": "/no/such.h5"}, "/no/such.h5"),
        ({"save": "model.h5"}, "cannot write model.h5: a Keras file is a copy"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    change: dict[str, str], said: str, writers: str, federate: Federate, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        federate(**{**SMALL, "data": writers, **change})
    assert not (tmp_path / "run").exists()


def test_a_keras_file_in_and_out(tff_data: Path, writers: str, tmp_path: Path) -> None:
    from simulation.federation import simulate

    init = tff_data.parent / "parity/emnist_cnn_init.h5"
    values = {**SMALL, "data": writers, "task": "emnist_cnn", "rounds": 1, "cohort": "1"}
    saved = tmp_path / "tuned.h5"
    logdir = tmp_path / "log"
    simulate(Settings(**values, init=str(init), save=str(saved), logdir=str(logdir)))
    weights, _ = read_checkpoint(logdir / "checkpoints/round-000001.safetensors")
    tuned = arrays_of(load_model(saved))
    assert fingerprint(tuned) == fingerprint(
        {name.removeprefix("weights/"): array for name, array in weights.items()}
    )
    assert fingerprint(tuned) != fingerprint(arrays_of(load_model(init)))


def test_the_json_file_is_there_after_every_round(
    writers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    path = tmp_path / "run.json"
    save = Federation._checkpoint

    def watch(self: Federation, *arguments: Any) -> None:
        seen.append(len(json.loads(path.read_text())["rounds"]))
        save(self, *arguments)

    monkeypatch.setattr(Federation, "_checkpoint", watch)
    from simulation.federation import simulate

    simulate(Settings(**SMALL, data=writers, json=str(path), logdir=str(tmp_path / "log")))
    assert seen == [1, 2]


def test_rounds_one_by_one_are_the_same_run(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "server_optimizer": "adam:lr=0.1", "aggregator": "robust"}
    content, arrays = federate("whole", **values)
    federation = in_process(Settings(**values))
    assert federation.evaluate() == content["before"]
    first, second = federation.next(), federation.next()
    assert federation.history == [first, second]
    assert [first.train, second.train] == [record["train"] for record in content["rounds"]]
    assert [first.eval, second.eval] == [record["eval"] for record in content["rounds"]]
    assert second.comm == content["rounds"][1]["comm"]
    assert fingerprint(arrays_of(federation.model)) == fingerprint(arrays)


def test_the_state_has_everything_that_adapts(writers: str) -> None:
    values = {**SMALL, "data": writers, "server_optimizer": "adam:lr=0.1", "aggregator": "robust"}
    federation = in_process(Settings(**values))
    shapes = {name: array.shape for name, array in federation.state().items()}
    assert shapes == {
        "weights/dense.weight": (10, 784),
        "weights/dense.bias": (10,),
        "aggregator/zeroing": (),
        "aggregator/clipping": (),
    }
    federation.next()
    added = {name: array for name, array in federation.state().items() if name not in shapes}
    assert sorted(added) == [
        f"optimizer/{index}/{slot}"
        for index in (0, 1)
        for slot in ("accumulator", "preconditioner", "step")
    ]
    assert added["optimizer/0/step"] == 1
    assert added["optimizer/0/accumulator"].shape == (10, 784)


def test_runs_that_start_in_one_second_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "runs/now")
    names = []
    for _ in range(3):
        names.append(resolve(Settings(task="emnist_lr"), load_task("emnist_lr")).logdir)
        Path(names[-1]).mkdir(parents=True)
    assert names == ["runs/now", "runs/now-2", "runs/now-3"]
