"""Checkpoint files: what is written is read back, whole or not at all."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from settings.errors import InputError
from weights.checkpoint import (
    model_arrays,
    read_checkpoint,
    round_of,
    round_path,
    round_paths,
    write_checkpoint,
)
from weights.named import NamedArrays, fingerprint

ARRAYS: NamedArrays = {
    "w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(10, dtype=np.float32)[::3],
    "count": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}
HEADER = {"architecture": "", "rounds": [{"loss": 0.1 + 0.2}], "name": "Grüße"}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "model.safetensors"
    write_checkpoint(path, ARRAYS, HEADER)
    arrays, header = read_checkpoint(path)
    assert header == HEADER
    assert fingerprint(arrays) == fingerprint(ARRAYS)
    assert arrays["count"].shape == ()
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_the_disk_is_waited_for_if_nobody_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_checkpoint(tmp_path / "a.safetensors", ARRAYS, HEADER, durable=False)
    assert not synced
    write_checkpoint(tmp_path / "a.safetensors", ARRAYS, HEADER)
    assert len(synced) == 2


def test_equal_content_makes_equal_files(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(30)]
    for file in files:
        write_checkpoint(file, ARRAYS, HEADER)
    assert len({file.read_bytes() for file in files}) == 1


def test_others_may_read_what_the_mask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_checkpoint(tmp_path / "a.safetensors", ARRAYS, HEADER)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_file_system_without_modes_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EPERM, "operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    write_checkpoint(tmp_path / "a.safetensors", ARRAYS, HEADER)
    assert read_checkpoint(tmp_path / "a.safetensors")[1] == HEADER


def test_what_is_kept_of_rounds_is_found_in_their_order(tmp_path: Path) -> None:
    paths = [round_path(tmp_path, number) for number in (2, 10, 999_999)]
    for path in (*reversed(paths), tmp_path / "round-x.safetensors", tmp_path / "round-1.json"):
        path.touch()
    assert round_paths(tmp_path) == paths
    assert [round_of(path) for path in paths] == [2, 10, 999_999]
    assert round_paths(tmp_path / "none") == round_paths(paths[0]) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/below.safetensors: cannot be written: "):
        write_checkpoint(tmp_path / "file" / "below.safetensors", ARRAYS, {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"/folder: cannot be written: "):
        write_checkpoint(tmp_path / "folder", ARRAYS, {})
    assert len(list(tmp_path.iterdir())) == 2


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match=r"model.safetensors: no such file$"):
        read_checkpoint(path)
    write_checkpoint(path, ARRAYS, HEADER)
    whole = path.read_bytes()
    for length in (0, 4, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="is not a safetensors file, or is damaged"):
            read_checkpoint(path)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_checkpoint(path, ARRAYS, HEADER)
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            arrays, header = read_checkpoint(path)
        except InputError:
            continue
        # What is left are flips that say the same, such as in the padding of the file's own header.
        assert fingerprint(arrays) == fingerprint(ARRAYS)
        assert header == HEADER


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones(2)}, path)
    with pytest.raises(InputError, match="was not written by fedferry"):
        read_checkpoint(path)
    save_torch({"w": torch.ones(2, dtype=torch.bfloat16)}, path)
    with pytest.raises(InputError, match="was not written by fedferry"):
        read_checkpoint(path)
    save_file({"w": np.ones(2)}, path, metadata={"fedferry": "{not json"})
    with pytest.raises(InputError, match="damaged"):
        read_checkpoint(path)


def test_model_arrays_of_a_saved_model_and_of_a_run() -> None:
    model = {"dense.weight": ARRAYS["w"]}
    assert model_arrays(model) == model
    run = {"weights/dense.weight": ARRAYS["w"], "optimizer/0/step": ARRAYS["count"]}
    assert model_arrays(run) == model
