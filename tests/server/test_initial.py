"""The model that a run starts from."""

import json
from pathlib import Path

import pytest

from server.initial import initial_model, save_final
from settings.errors import InputError
from tasks.shakespeare import DICKENS, shakespeare
from weights.keras import build_model, load_model


def test_a_checkpoint_of_fewer_symbols_is_refused_at_once(tmp_path: Path) -> None:
    """However long the windows are: a model is tried on a few characters, the last symbol among them."""
    config = json.loads(load_model(DICKENS).config)
    layers = {layer["class_name"]: layer["config"] for layer in config["config"]["layers"]}
    layers["GRU"]["units"] = 4
    long = shakespeare(sequence_length=10**6)
    assert long.probe is not None
    assert long.probe.inputs.numel() < 100
    for symbols in (86, 85):
        layers["Dense"]["units"] = symbols
        path = tmp_path / f"{symbols}.safetensors"
        save_final(build_model(json.dumps(config), logits=True), path, None)
        if symbols == 86:
            initial_model(long, str(path), 0)
    said = "85.safetensors holds a model of another architecture than task shakespeare needs"
    with pytest.raises(InputError, match=said):
        initial_model(long, str(path), 0)
