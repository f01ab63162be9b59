"""Files that are replaced in one step."""

import os
from pathlib import Path

import pytest

from weights.files import replacing


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("the power went out")

    with pytest.raises(RuntimeError, match="power"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "link", tmp_path / "elsewhere" / "file"
    link.symlink_to(file)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def test_content_then_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []

    def sync(handle: int) -> None:
        synced.append((os.path.realpath(f"/proc/self/fd/{handle}"), path.exists()))

    monkeypatch.setattr(os, "fsync", sync)
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert synced == [(str(temporary), False), (str(tmp_path), True)]
    with replacing(path, durable=False) as temporary:
        temporary.write_text("newer")
    assert len(synced) == 2
