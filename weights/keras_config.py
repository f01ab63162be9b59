"""Keras's `model_config`, whichever version wrote it, as one plain chain of layers.

The normal form is that of a Keras Sequential model, which starts with an InputLayer:
    {"class_name": "Sequential", "keras_version": "2.14.0", "config": {"name": ..., "layers": [
        {"class_name": "InputLayer", "config": {"name": ..., "batch_shape": [8, null]}},
        {"class_name": "Dense", "config": {"name": ..., "units": 10, ...}}, ...]}}
The version stays, since Keras 3 gave the name `hard_sigmoid` to another function.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from settings.errors import InputError, unknown

Config = dict[str, Any]

MAX_DEPTH = 40


def normalised(
    config: str | bytes | Config, where: str, keras_version: str | None = None
) -> Config:
    """A `model_config` in the normal form.

    Args:
        config: What Keras wrote, as text or parsed; the normal form too.
        where: The file's name for errors.
        keras_version: What the file says besides; the config's own word goes before it.

    Raises:
        InputError: Not a config, or of a model that is no chain of layers.
    """
    config = parsed(config, where)
    kind, inner = config.get("class_name"), config.get("config")
    if kind == "Sequential":
        # The layers alone, without a name, up to TensorFlow 1.x.
        listed = inner if isinstance(inner, list) else _dict(inner, where).get("layers")
        layers = _dicts(listed, where)
    elif kind in ("Functional", "Model"):
        layers = _chain(_dict(inner, where), where)
    else:
        raise unknown(f"model class in {where}", str(kind), ["Sequential", "Functional"])
    layers = [_layer(layer, where) for layer in layers]
    if not layers:
        raise InputError(f"{where}: the model has no layers")
    if layers[0]["class_name"] != "InputLayer":
        built = inner.get("build_input_shape") if isinstance(inner, dict) else None
        layers.insert(0, _input_of(layers[0], built, where))
    name = inner.get("name") if isinstance(inner, dict) else None
    version = str(config.get("keras_version") or keras_version or _guessed_version(layers))
    if not re.match(r"\d{1,3}\b", version):
        raise InputError(f"{where}: {version!r} is no version of Keras")
    return {
        "class_name": "Sequential",
        "keras_version": version,
        "config": {"name": name or "sequential", "layers": [_with_shape(at) for at in layers]},
    }


def without_softmax(config: Config) -> Config:
    """A normal form whose model ends in logits where it ended in a softmax."""
    *layers, last = config["config"]["layers"]
    options = last["config"]
    if last["class_name"] in ("Dense", "Activation") and options.get("activation") == "softmax":
        layers.append({**last, "config": {**options, "activation": "linear"}})
    elif last["class_name"] != "Softmax":
        layers.append(last)
    return {**config, "config": {**config["config"], "layers": layers}}


def parsed(config: str | bytes | Config, where: str) -> Config:
    """The object that JSON text stands for, nested no deeper than a config is."""
    try:
        value = config if isinstance(config, dict) else json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: its config is not JSON: {error}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise InputError(f"{where}: its config is nested more than {MAX_DEPTH} deep")
    return _dict(value, where)


def _dict(value: Any, where: str) -> Config:
    if not isinstance(value, dict):
        raise InputError(f"{where}: the model config has {type(value).__name__} for an object")
    return value


def _dicts(value: Any, where: str) -> list[Config]:
    if not isinstance(value, list):
        raise InputError(f"{where}: the model config has no list of layers")
    return [_dict(item, where) for item in value]


def _layer(layer: Config, where: str) -> Config:
    """Class, name and options of one layer, the options' harmless spellings made one."""
    class_name, options = layer.get("class_name"), _dict(layer.get("config"), where)
    name = options.get("name", layer.get("name"))
    if not isinstance(class_name, str) or not isinstance(name, str):
        raise InputError(f"{where}: the model config has a layer without a class or a name")
    package = str(layer.get("module") or "keras").partition(".")[0]
    if package not in ("keras", "tf_keras", "tensorflow"):
        raise InputError(f"{where}: layer {name!r} is of a custom class, {package}'s {class_name}")
    options = {key: _plain(value) for key, value in options.items()}
    # Integer inputs, such as ids and raw pixels, are their InputLayer's affair.
    dtype = options.pop("dtype", None)
    if class_name != "InputLayer" and dtype not in (None, "float32"):
        raise InputError(f"{where}: layer {name!r} computes in {dtype}, only float32 is supported")
    return {"class_name": class_name, "config": {**options, "name": name}}


def _plain(value: Any) -> Any:
    """The name in Keras 3's serialised functions and dtype policies; anything else as it is."""
    if isinstance(value, dict) and value.get("class_name") in ("function", "DTypePolicy", "Policy"):
        inner = value.get("config")
        return inner.get("name") if isinstance(inner, dict) else inner
    return value


def _input_of(layer: Config, built: Any, where: str) -> Config:
    """The InputLayer that a Sequential model of Keras 2 may leave to its first layer."""
    name, options = layer["config"]["name"], layer["config"]
    shape = options.get("batch_input_shape") or options.get("batch_shape") or built
    if shape is None:
        raise InputError(f"{where}: layer {name!r} does not say its input's shape")
    return {"class_name": "InputLayer", "config": {"name": f"{name}_input", "batch_shape": shape}}


def _with_shape(layer: Config) -> Config:
    """Keras 3's `batch_shape` for Keras 2's `batch_input_shape`, on the InputLayer alone."""
    options = dict(layer["config"])
    shape = options.pop("batch_input_shape", None)
    if layer["class_name"] == "InputLayer":
        options = {"name": options["name"], "batch_shape": options.get("batch_shape", shape)}
    return {"class_name": layer["class_name"], "config": options}


def _guessed_version(layers: list[Config]) -> str:
    """`model.to_json()` of Keras 3 names no version, but spells the input's shape its own way."""
    return "3" if "batch_shape" in layers[0]["config"] else "2"


def _chain(graph: Config, where: str) -> list[Config]:
    """A functional model's layers in order, if they are a chain."""
    layers = {str(layer.get("name")): layer for layer in _dicts(graph.get("layers"), where)}
    users: dict[str, list[str]] = {}
    starts = []
    for name, layer in layers.items():
        sources = list(_sources(layer.get("inbound_nodes"), f"{where}: layer {name!r}"))
        if layer.get("class_name") == "InputLayer" and not sources:
            starts.append(name)
        elif len(sources) == 1:
            users.setdefault(sources[0], []).append(name)
        else:
            raise InputError(f"{where}: layer {name!r} has {len(sources)} inputs, not one")
    if len(starts) != 1:
        raise InputError(f"{where}: the model has {len(starts)} inputs, only one is supported")
    order = starts
    while followers := users.pop(order[-1], None):
        if len(followers) > 1:
            raise InputError(
                f"{where}: layer {order[-1]!r} branches to {', '.join(followers)}, "
                "only chains of layers are supported"
            )
        order.append(followers[0])
    outputs = list(_tensors(graph.get("output_layers")))
    if len(order) != len(layers) or outputs != [order[-1]]:
        raise InputError(f"{where}: the model is no chain of layers from its input to its output")
    return [layers[name] for name in order]


def _sources(nodes: Any, what: str) -> Iterator[str]:
    """The layers whose outputs a layer takes, over all its calls."""
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, dict):  # Keras 3: {"args": [...], "kwargs": {...}}
            tensors, given = node.get("args"), [node.get("kwargs")]
        else:  # Keras 2: [["conv2d", 0, 0, {...}]]
            tensors = node if isinstance(node, list) else []
            given = [tensor[3] for tensor in tensors if isinstance(tensor, list) and tensor[3:]]
        for options in given:
            if isinstance(options, dict) and any(value is not None for value in options.values()):
                raise InputError(f"{what} is called with options, which is not supported")
        yield from _tensors(tensors)


def _tensors(value: Any) -> Iterator[str]:
    """Layer names in references, `["conv2d", 0, 0]` or {"config": {"keras_history": [...]}}."""
    if isinstance(value, dict):
        inner = value.get("config")
        yield from _tensors(inner.get("keras_history") if isinstance(inner, dict) else None)
    elif isinstance(value, list) and value and isinstance(value[0], str):
        yield value[0]
    elif isinstance(value, list):
        for item in value:
            yield from _tensors(item)
