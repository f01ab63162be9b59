"""The round loop: what a run leaves behind, what it starts from, and what stops it."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.app import announce
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


def test_the_seed_decides_shuffling_alone_too(writers: str, federate: Federate) -> None:
    values = {**SMALL, "data": writers, "cohort": "all", "task": "emnist_lr"}
    shuffled = {fingerprint(federate(f"s{n}", **values, seed=n)[1]) for n in (1, 2)}
    assert len(shuffled) == 2
    ordered = {fingerprint(federate(f"o{n}", **values, seed=n, shuffle=False)[1]) for n in (1, 2)}
    assert len(ordered) == 1


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
        ({"data": "/no/such.h5"}, "/no/such.h5: no such file"),
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
