"""The settings of a run, as Flower's run config has them."""

import re
from dataclasses import fields
from typing import Any

import pytest

from settings.errors import InputError
from settings.schema import Settings


def test_run_config_round_trip() -> None:
    settings = Settings(task="emnist_lr", local_epochs=3, shuffle=False, client_ids="a,b", seed=7)
    config = settings.to_config()
    assert config["local-epochs"] == 3
    assert config["shuffle"] is False
    assert len(config) == len(fields(Settings))
    assert Settings.from_config(config) == settings


def test_what_is_not_given_keeps_its_default() -> None:
    assert Settings.from_config({"rounds": 3}) == Settings(rounds=3)
    assert Settings.from_config({}) == Settings()


def test_flower_knows_the_types_of_every_setting() -> None:
    for value in Settings().to_config().values():
        assert type(value) in (str, int, float, bool)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"local_epochs": 2}, "^unknown setting 'local_epochs': the nearest are local-epochs"),
        ({"client-optimiser": "sgd"}, "unknown setting 'client-optimiser': .*client-optimizer"),
        ({"rounds": "3"}, "^setting rounds must be int, not '3'$"),
        ({"rounds": True}, "^setting rounds must be int, not True$"),
        ({"shuffle": 1}, "^setting shuffle must be bool, not 1$"),
        ({"cohort": 10}, "^setting cohort must be str, not 10: write '10'$"),
        ({"weighting": "sizes"}, "^unknown --weighting 'sizes': choose from examples, uniform$"),
        ({"evaluation": "central"}, "unknown --evaluation 'central'"),
        ({"batch-size": -1}, "^--batch-size must not be negative, but is -1$"),
        ({"seed": -1}, "^--seed must not be negative"),
        ({"rounds": 0}, "^--rounds must be at least 1, not 0$"),
        ({"local-epochs": 0}, "--local-epochs must be at least 1"),
        ({"over-select": 0.5}, "^--over-select must be at least 1 and finite, not 0.5$"),
        ({"over-select": float("nan")}, "--over-select must be at least 1 and finite, not nan"),
        ({"over-select": 1.5, "client-ids": "a"}, "^--over-select asks more of a sample, --client"),
        ({"data": ""}, r"^--data must be PATH\|tff\|hf:NAME\|sample, not ''$"),
        ({"server-optimizer": ""}, "^--server-optimizer must be SPEC, not ''$"),
        ({"task": ""}, "^--task must be a name, not ''$"),
        ({"deadline": 0}, "--deadline must be at least 1"),
        ({"resume": True}, "^--resume needs --logdir"),
        ({"json": "runs/new/"}, "^--json runs/new/ is a folder's name, not a file's$"),
        ({"save": "m.safetensors/"}, "^--save m.safetensors/ is a folder's name, not a file's$"),
        ({"logdir": "caf\udce9"}, r"^--logdir 'caf\\udce9' is not UTF-8$"),
        (
            {"cohort": "many"},
            "^--cohort must be a number of clients, 1 or more, or all, not 'many'$",
        ),
        ({"cohort": "0"}, "^--cohort must be .*, not '0'$"),
        ({"cohort": "-3"}, "^--cohort must be .*, not '-3'$"),
        ({"cohort": "1_000"}, "^--cohort must be .*, not '1_000'$"),
        ({"cohort": ""}, "^--cohort must be .*, not ''$"),
        ({"eval-cohort": "1.5"}, "^--eval-cohort must be .*, not '1.5'$"),
    ],
)
def test_mistakes(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Settings.from_config(config)


def test_named_clients() -> None:
    assert Settings().named_clients() == []
    assert Settings(client_ids=" b, a ,,").named_clients() == ["b", "a"]


def test_help_says_what_is_taken_where_nothing_is_given() -> None:
    for item in fields(Settings):
        if item.default == "" and item.name not in ("save", "json"):
            assert re.search("empty|Without it", item.metadata["help"]), item.name


def test_clients_a_round() -> None:
    assert Settings(cohort="25").clients_a_round() == 25
    assert Settings(cohort="all").clients_a_round() == 0
    assert Settings(cohort="25", client_ids="a,b").clients_a_round() == 2


def test_a_task_is_named_and_not_given() -> None:
    with pytest.raises(InputError, match="setting cohort must be str, not 6"):
        Settings(cohort=6)  # type: ignore[arg-type]
