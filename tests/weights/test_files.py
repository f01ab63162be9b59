"""Files that are replaced or lengthened in one step."""

import errno
import os
from pathlib import Path

import pytest

from settings.errors import InputError
from weights.files import (
    Growing,
    check_file,
    check_place,
    check_word,
    clear_temporaries,
    replacing,
)


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


def test_a_file_that_cannot_even_be_begun(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(InputError, match=r"file: cannot be written: .*no space left"):
        fail()


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


def test_what_cannot_be_replaced_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name, said in (("", "it is a folder"), ("pipe", "it is a device, not a file")):
        for refuse in (check_place, lambda path: replacing(path).__enter__()):
            with pytest.raises(InputError, match=f"{name}: cannot be written: {said}"):
                refuse(tmp_path / name)
    with pytest.raises(InputError, match=f"{tmp_path}/file is not a folder that takes files"):
        check_place(tmp_path / "file/below/deep")
    check_place(tmp_path / "file")
    check_place(tmp_path / "new/deep")
    monkeypatch.setattr(os, "access", lambda path, how: (path, how) != (tmp_path, os.W_OK))
    with pytest.raises(InputError, match=f"{tmp_path} is not a folder that takes files"):
        check_place(tmp_path / "new/deep")
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    check_file(tmp_path / "file")
    for name, said in (
        ("nope", "no such file"),
        ("file/below", "no such file"),
        ("", "a folder, not a file"),
        ("pipe", "a device, not a file"),
        ("n" * 300, "cannot be read: File name too long"),
    ):
        with pytest.raises(InputError, match=f"{name}: {said}$"):
            check_file(tmp_path / name)

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # whoever tests as root may read everything
    with pytest.raises(InputError, match=r"file: cannot be read: Permission denied$"):
        check_file(tmp_path / "file")


def test_a_word_that_is_nearly_one_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("sampel", str(tmp_path / "sampel")):
        with pytest.raises(InputError, match=f"^{text}: no such file; did you mean sample\\?$"):
            check_word(text, "sample", "tff")
    check_word("digits_train.h5", "sample", "tff")
    (tmp_path / "sampel").touch()
    check_word("sampel", "sample", "tff")


def test_what_cannot_be_appended_is_appended_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    file, sync = Growing(path), os.fsync
    file.write(b"one ")
    file.write(b"two ")
    assert not path.exists()
    file.flush()
    assert path.read_bytes() == b"one two "

    def fail(handle: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    file.write(b"three ")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match=r"file: cannot be written: .*input/output error"):
        file.flush(durable=True)
    assert path.read_bytes() == b"one two "
    monkeypatch.setattr(os, "fsync", sync)
    file.write(b"four")
    file.flush(durable=True)
    assert path.read_bytes() == b"one two three four"


def test_a_growing_file_keeps_what_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one two")
    file = Growing(path, 4)
    file.write(b"three")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    file.flush()
    assert path.read_bytes() == b"one three"
    assert not synced
    file.flush(durable=True)
    assert len(synced) == 1
    Growing(path).flush()
    assert path.read_bytes() == b""


def test_a_flush_that_was_stopped_half_way_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(handle: int) -> None:
        raise KeyboardInterrupt

    file = Growing(tmp_path / "file")
    file.write(b"one ")
    file.flush()
    file.write(b"two")
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        file.flush(durable=True)
    file.flush()
    assert (tmp_path / "file").read_bytes() == b"one two"


def test_folders_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "new/deep/file") as temporary:
        temporary.touch()
    assert (tmp_path / "new/deep/file").is_file()
    Growing(tmp_path / "newer/deep/file").flush()
    assert (tmp_path / "newer/deep/file").is_file()


def test_a_file_system_that_cannot_sync_a_folder_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(handle: int) -> None:
        if Path(os.path.realpath(f"/proc/self/fd/{handle}")).is_dir():
            raise OSError("not supported")

    monkeypatch.setattr(os, "fsync", sync)
    handles = len([*Path("/proc/self/fd").iterdir()])
    with replacing(tmp_path / "file") as temporary:
        temporary.touch()
    assert (tmp_path / "file").is_file()
    assert len([*Path("/proc/self/fd").iterdir()]) == handles


def test_only_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = [tmp_path / ".a.safetensors.0123abcd", tmp_path / "deep/er/.b.ffffffff"]
    left.append(tmp_path / "deep/.tmpmjq7cO")
    names = (
        ".tmpmjq7c",
        ".tmpmjq7cOO",
        ".tmp-jq7cO",
        "atmpmjq7cO",
        ".hidden",
        ".a.0123abc",
        ".a.0123abcde",
        ".a.0123ABCD",
        "a.0123abcd",
        ".0123abcd",
    )
    kept = [tmp_path / name for name in names]
    (tmp_path / "deep/er").mkdir(parents=True)
    for path in left + kept:
        path.touch()
    clear_temporaries(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
