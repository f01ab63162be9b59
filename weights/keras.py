"""Keras models in and out of PyTorch, without TensorFlow or Keras.

`load_model` builds a module from a Keras file's own description and fills it; `save_model` writes a
module's arrays into a copy of such a file, for Keras to open. See `keras_files` for the kinds of
file and `keras_layers` for the layers.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from settings.errors import InputError, unknown
from weights.hdf5 import read, write
from weights.image_layers import Conv2D, MaxPooling2D, convolved_and_pooled
from weights.initializers import initialise
from weights.keras_arrays import Variable, variables
from weights.keras_config import Config, normalised, without_softmax
from weights.keras_files import KerasFile, copied, located, opened
from weights.keras_layers import BUILDERS, Shape
from weights.keras_options import Options
from weights.layers import Embedding
from weights.named import Array, check_names
from weights.recurrent import GRU

MAX_PARAMETERS = 2**30


class KerasModel(nn.Sequential):
    """A Keras model: its layers by their Keras names, taking and giving what Keras's took and gave.

    Args:
        layers: Modules by layer name, in order.
        config: The model's description, see `config`.

    Attributes:
        config: JSON text from which `build_model` makes the same architecture.
    """

    def __init__(self, layers: Mapping[str, nn.Module], config: str) -> None:
        super().__init__(OrderedDict(layers))
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Sequential`, but with less work for the same outputs.

        A GRU behind an Embedding looks up its symbols itself, projected; a convolution and the maximum behind it are
        one.
        """
        layers = iter(zip_longest(self, list(self)[1:]))
        for layer, following in layers:
            if isinstance(layer, Embedding) and isinstance(following, GRU):
                x = following(layer.ids(x), layer.weight)
                next(layers)
            elif isinstance(layer, Conv2D) and isinstance(following, MaxPooling2D):
                x = convolved_and_pooled(layer, following, x)
                next(layers)
            else:
                x = layer(x)
        return x

    def variables(self) -> list[Variable]:
        """The model's arrays as Keras knows them, in Keras's order."""
        classes = {layer["config"]["name"]: layer["class_name"] for layer in _layers(self.config)}
        return [
            variable
            for name, module in self.named_children()
            for variable in variables(name, classes[name], module)
        ]


def load_model(path: str | Path, *, logits: bool = False) -> KerasModel:
    """Builds the model that a Keras file describes, with the file's weights.

    Args:
        path: A `.keras` file, or a full-model HDF5 file of any Keras version and suffix.
        logits: Leave out a softmax at the end.

    Returns:
        The model on the CPU in training mode, float32.

    Raises:
        InputError: The file is unreadable, its model not supported, or its arrays do not fit.
    """
    with opened(Path(path)) as file:
        if file.config is None:
            raise InputError(f"{path}: holds weights only: build a model and use load_weights")
        model = _skeleton(file.config, file.where, logits)
        wanted = model.variables()
        arrays = _read(file, wanted)
    return _filled(model, wanted, arrays)


def build_model(config: str | Config, *, logits: bool = False) -> KerasModel:
    """Builds the model that a `model_config` describes, freshly initialised as Keras does it.

    Args:
        config: JSON text or parsed: `KerasModel.config`, Keras's `model.to_json()`, or a file's.
        logits: Leave out a softmax at the end.

    Returns:
        The model on the CPU in training mode, drawn from torch's global random numbers.

    Raises:
        InputError: The model or an initializer is not supported.
    """
    where = "model config"
    model = _skeleton(normalised(config, where), where, logits)
    options = {layer["config"]["name"]: layer["config"] for layer in _layers(model.config)}
    wanted = model.variables()
    arrays = []
    for variable in wanted:
        with _naming(where, variable.layer):
            arrays.append(_drawn(variable, options[variable.layer]))
    return _filled(model, wanted, arrays)


def load_weights(module: KerasModel, path: str | Path) -> None:
    """Fills a model from a file: weights only, of Keras 2 or 3, or a full model of any kind.

    Raises:
        InputError: The file's arrays are not those that the model needs. The model is unchanged.
    """
    wanted = module.variables()
    with opened(Path(path)) as file:
        arrays = _read(file, wanted)
    _fill(module, wanted, arrays)


def save_model(
    module_or_arrays: nn.Module | Mapping[str, Array], template: str | Path, path: str | Path
) -> None:
    """Writes a copy of a Keras file with other weights, which Keras opens as it opens the template.

    Everything else in the file stays, an optimizer's state included. The copy appears at `path` in
    one step and complete, or not at all.

    Args:
        module_or_arrays: The weights: a module, or arrays by state name, `<layer>.<parameter>`.
        template: A file of any kind; for one of weights only, the first argument is a KerasModel.
        path: Where to write; may be the template's own path.

    Raises:
        InputError: Names or shapes are not the template's, or a file cannot be read or written.
    """
    state = (
        module_or_arrays.state_dict()
        if isinstance(module_or_arrays, nn.Module)
        else {name: torch.tensor(array) for name, array in module_or_arrays.items()}
    )
    with copied(Path(template), Path(path)) as file:
        config = file.config or getattr(module_or_arrays, "config", None)
        if config is None:
            raise InputError(f"{template}: holds weights only: save_model then needs a KerasModel")
        model = _skeleton(normalised(config, file.where), file.where, logits=False)
        expected = model.state_dict()
        check_names(state, expected, f"what to save as {path}")
        for name, tensor in state.items():
            if tensor.shape != expected[name].shape or not tensor.is_floating_point():
                raise InputError(
                    f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, "
                    f"{template} needs floats {tuple(expected[name].shape)}"
                )
        wanted = model.variables()
        for variable, dataset in zip(wanted, located(file, wanted), strict=True):
            names = [f"{variable.layer}.{target}" for target in variable.slot.targets]
            tensors = [state[name].detach().to("cpu", torch.float32) for name in names]
            write(dataset, variable.slot.to_keras(*tensors).numpy(), _what(file.where, variable))


def _layers(config: str) -> list[dict[str, Any]]:
    """The layers of a normal form in text."""
    layers: list[dict[str, Any]] = json.loads(config)["config"]["layers"]
    return layers


def _skeleton(config: Config, where: str, logits: bool) -> KerasModel:
    """The model on the meta device: shapes without memory, so that a file cannot claim it all."""
    config = without_softmax(config) if logits else config
    first, *rest = config["config"]["layers"]
    keras = 3 if int(config["keras_version"].partition(".")[0]) >= 3 else 2
    shape = _input_shape(first, where)
    modules: dict[str, nn.Module] = {}
    reserved = KerasModel({}, "")
    for layer in rest:
        class_name, name = layer["class_name"], layer["config"]["name"]
        options = Options(layer["config"], keras)
        with _naming(where, name), torch.device("meta"):
            if class_name not in BUILDERS:
                raise unknown("layer class", class_name, BUILDERS)
            if not name or name in modules or "." in name or hasattr(reserved, name):
                raise InputError("the name cannot be used, or not twice")
            module, shape = BUILDERS[class_name](options, shape)
            options.close()
        modules[name] = module.requires_grad_(options.trainable)
    model = KerasModel(modules, json.dumps(config))
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise InputError(f"{where}: {count:,} parameters, more than the {MAX_PARAMETERS:,} allowed")
    return model


def _input_shape(layer: dict[str, Any], where: str) -> Shape:
    """The shape, batch included, that an InputLayer declares."""
    shape = layer["config"]["batch_shape"]
    if not isinstance(shape, list) or not all(
        size is None or (type(size) is int and size > 0) for size in shape
    ):
        raise InputError(f"{where}: the input's shape is {shape!r}, not a list of sizes")
    return tuple(shape)


def _drawn(variable: Variable, options: dict[str, Any]) -> Tensor:
    """A fresh array in Keras's layout, from the initializer that the layer's options name."""
    option, default = variable.slot.initializer
    array = torch.empty(variable.shape)
    initialise(array, options.get(option) or default)
    forgets = options.get("unit_forget_bias", True) is not False
    if forgets and (variable.class_name, variable.name) == ("LSTM", "bias"):
        array.view(4, -1)[1] = 1.0
    return array


@contextmanager
def _naming(where: str, layer: str) -> Iterator[None]:
    """Names the file and the layer in errors of building it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: layer {layer!r}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        line = str(error).partition("\n")[0]
        raise InputError(f"{where}: layer {layer!r} cannot be built: {line}") from error


def _what(where: str, variable: Variable) -> str:
    return f"{where}: layer {variable.layer!r}: {variable.name}"


def _read(file: KerasFile, wanted: Sequence[Variable]) -> list[Tensor]:
    """The file's arrays for each variable, in Keras's layout."""
    return [
        torch.from_numpy(read(dataset, variable.shape, _what(file.where, variable)))
        for variable, dataset in zip(wanted, located(file, wanted), strict=True)
    ]


def _filled(model: KerasModel, wanted: Sequence[Variable], arrays: Sequence[Tensor]) -> KerasModel:
    """A skeleton given memory and arrays; every tensor of it belongs to a variable."""
    # Not model.to_empty, which imports sympy: a second for a client that starts for each message.
    memory = {
        name: torch.empty_strided(tensor.shape, tensor.stride(), device="cpu")
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(memory, assign=True)
    _fill(model, wanted, arrays)
    return model


@torch.no_grad()
def _fill(model: KerasModel, wanted: Sequence[Variable], arrays: Sequence[Tensor]) -> None:
    state = model.state_dict()
    for variable, array in zip(wanted, arrays, strict=True):
        for target, tensor in zip(
            variable.slot.targets, variable.slot.to_torch(array), strict=True
        ):
            state[f"{variable.layer}.{target}"].copy_(tensor)
