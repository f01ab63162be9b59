"""What importing `settings.threads` sets, in a process of its own."""

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(
    ("own", "wanted"),
    [
        ({}, "PASSIVE 1000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
    ],
)
def test_who_has_set_a_policy_is_left_alone(own: dict[str, str], wanted: str) -> None:
    program = f"import os, settings.threads; print(*map(os.environ.get, {NAMES}))"
    others = {name: value for name, value in os.environ.items() if name not in NAMES}
    said = subprocess.run(
        [sys.executable, "-c", program],
        env=others | own,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == wanted


@pytest.mark.parametrize("package", ["client", "server", "simulation"])
def test_packages_set_it_before_torch_is_loaded(package: str) -> None:
    program = (
        f"import sys, {package}; print('settings.threads' in sys.modules, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["True", "False"]
