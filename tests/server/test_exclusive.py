"""A run's folder is held by one process."""

import errno
import fcntl
from pathlib import Path

import pytest

from server.state import exclusive
from settings.errors import InputError


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "a"),
        exclusive(tmp_path / "b"),
        pytest.raises(InputError, match="a is in use: another run"),
        exclusive(tmp_path / "a"),
    ):
        pass
    with exclusive(tmp_path / "a"):
        pass
    with exclusive(tmp_path / "deep/er"):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="file/a: cannot be written"),
        exclusive(tmp_path / "file/a"),
    ):
        pass


def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", lock)
    with exclusive(tmp_path), exclusive(tmp_path):
        pass
