"""The command `flwr`: what it is told, on which SuperLink, and what it answers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from settings.errors import InputError
from settings.schema import Settings, Value, key_of

BIN = Path(sys.executable).parent
COMPLETED = "finished:completed"
_PATHS = ("data", "init", "save", "json", "logdir")
_NAMES = ("sample", "tff", "dickens")
"""What stands for data or a checkpoint in place of a path, beside `hf:NAME`."""


def flwr(
    *words: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Any:
    """What a `flwr` command answers, read as JSON.

    Args:
        words: The command's.
        environment: Its variables; None: ours.
        folder: Where it runs; None: here.

    Raises:
        InputError: It failed, or was refused, which it may say with the exit code 0.
    """
    # Beside the interpreter in a virtual environment, elsewhere in a Debian image.
    found = shutil.which("flwr", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise InputError("the command flwr is not installed: pip install flwr")
    command = [found, *words, "--format", "json"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip() or done.stdout.strip()
        raise InputError(f"flwr {words[0]}: {said}") from None
    if done.returncode or not answer.get("success", True):
        reason = answer.get("error-message") or "refused"
        raise InputError(f"flwr {words[0]}: {reason.splitlines()[-1]}")
    return answer


def write_connection(
    home: Path, name: str, address: str, root_certificates: Path | None = None
) -> None:
    """Write Flower's configuration: a SuperLink's `HOST:PORT`, by a name, over TLS where there are certificates."""
    security = "insecure = true"
    if root_certificates is not None:
        security = f'insecure = false\nroot-certificates = "{root_certificates.resolve()}"'
    home.mkdir(parents=True, exist_ok=True)
    connection = f'[superlink.{name}]\naddress = "{address}"\n{security}\n'
    (home / "config.toml").write_text(connection)


def config_words(config: Mapping[str, Value]) -> str:
    """A run config, or another of Flower's, as `flwr run` takes it: `key=value key="text"`."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())


def read_settings(pairs: Sequence[str]) -> dict[str, Value]:
    """`key=value` words as a run config: values by the schema's types, paths made absolute.

    Raises:
        InputError: An unknown key, or a value that cannot be read.
    """
    types = {key_of(item): type(item.default) for item in fields(Settings)}
    config: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"cannot read {pair!r}: write key=value")
        wanted = types.get(key, str)
        if wanted is bool and text in ("true", "false"):
            config[key] = text == "true"
        elif wanted in (int, float):
            try:
                config[key] = wanted(text)
            except ValueError:
                raise InputError(f"{key} must be a number, not {text!r}") from None
        else:
            config[key] = text
    config = Settings.from_config(config).to_config()
    for key in _PATHS:
        text = str(config[key])
        if text and text not in _NAMES and not text.startswith("hf:"):
            config[key] = str(Path(text).resolve())
    return config
